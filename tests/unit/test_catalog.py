"""The client's catalogue says what the API's does: as both describe what core holds."""

from api.routes import catalog as served
from client import catalog


def test_methods_are_those_of_the_api():
    assert catalog.methods() == served.list_methods().model_dump(mode="json")


def test_families_are_those_of_the_api():
    assert catalog.families() == served.list_families().model_dump(mode="json")


def test_rows_name_every_option_and_every_export_format():
    options = {name: cells[1] for name, *cells in catalog.method_rows()}
    for method in catalog.methods()["data"]:
        for option in method["options"]["properties"].keys() - {"name"}:
            assert f"{option}=" in options[method["name"]]
    formats = {name: cells[3] for name, *cells in catalog.family_rows()}
    assert formats == {f["model_type"]: ", ".join(f["export_formats"]) for f in catalog.families()["data"]}
