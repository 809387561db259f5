"""`python -m migrations` brings the database of the settings to the newest schema, and ends."""

from core.db import upgrade
from core.settings import get_settings

upgrade(get_settings().database_url)
