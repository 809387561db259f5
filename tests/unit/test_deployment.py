import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from core.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
DEPLOYMENT = [*DOCKERFILES, ROOT / "docker-compose.yml", *sorted((ROOT / "docker").glob("*.yml"))]
IMAGE_SOURCES = {"pyproject.toml", "README.md", "constraints.txt", "api", "client", "core", "migrations", "worker"}


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]


def test_services_are_complete(services: dict[str, Any]) -> None:
    assert set(services) == {"api", "worker", "redis", "postgres", "migrate"}


def test_workers_can_be_scaled(services: dict[str, Any]) -> None:
    assert {"container_name", "ports", "hostname"} & services["worker"].keys() == set()


@pytest.mark.parametrize("name", ["api", "worker"])
def test_nothing_starts_before_the_database_is_migrated(services: dict[str, Any], name: str) -> None:
    assert services[name]["depends_on"]["migrate"] == {"condition": "service_completed_successfully"}
    assert services["migrate"]["depends_on"]["postgres"] == {"condition": "service_healthy"}


def test_the_api_and_the_workers_share_the_artifact_store(services: dict[str, Any]) -> None:
    assert services["api"]["volumes"] == [volume for volume in services["worker"]["volumes"] if "storage" in volume]


def test_every_setting_can_be_given_to_compose(services: dict[str, Any]) -> None:
    # And the time for a last checkpoint, which must stay within `stop_grace_period`.
    of_the_image = {"WORK_DIR", "HUB_HOME", "STORAGE_URL", "SHUTDOWN_GRACE_SECONDS"}
    of_the_api = {"API_KEYS", "ALLOWED_HOSTS"}
    for name in ("api", "worker", "migrate"):
        passed = {key.removeprefix("NEUROPRUNE_"): value for key, value in services[name]["environment"].items()}
        wanted = {setting.upper() for setting in Settings.model_fields} - of_the_image
        assert (wanted if name == "api" else wanted - of_the_api) <= passed.keys()
        # Workers run models of others, to whom keys are nothing to find.
        assert ("API_KEYS" in passed) == (name == "api")
        # Without a value in the shell, Compose takes away even what the image says.
        assert passed["LOG_FORMAT"]
        assert ("HF_TOKEN" in passed) == (name == "worker")


def test_the_api_goes_by_its_name_in_the_network_and_by_those_of_this_machine(services: dict[str, Any]) -> None:
    given = services["api"]["environment"]["NEUROPRUNE_ALLOWED_HOSTS"]
    hosts = given.removeprefix("${NEUROPRUNE_ALLOWED_HOSTS:-").removesuffix("}").split(",")
    assert hosts == [*Settings.model_fields["allowed_hosts"].default, "api"]


@pytest.mark.parametrize("file", DEPLOYMENT, ids=lambda file: file.name)
def test_only_settings_that_exist_are_set(file: Path) -> None:
    named = set(re.findall(r"NEUROPRUNE_(\w+)(?:[:=]|$)", file.read_text(), re.MULTILINE))
    assert named <= {name.upper() for name in Settings.model_fields}


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_run_without_root_and_say_how_they_are(file: Path) -> None:
    last_stage = file.read_text().rpartition("\nFROM ")[2]
    assert re.search(r"^USER [1-9]\d*:[1-9]\d*$", last_stage, re.MULTILINE)
    assert "\nHEALTHCHECK " in last_stage


def test_an_open_stream_of_events_does_not_keep_the_api_from_stopping() -> None:
    text = (ROOT / "docker" / "api.Dockerfile").read_text()
    options = json.loads(text.rpartition("\nCMD ")[2].replace("\\\n", ""))
    assert 0 < int(options[options.index("--timeout-graceful-shutdown") + 1]) < 10  # after which Docker kills


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_what_images_copy_is_in_the_build_context(file: Path) -> None:
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {
        name
        for line in re.findall(r"^COPY (?!--from)(.+) \S+$", file.read_text(), re.MULTILINE)
        for name in line.split()
    }
    assert copied == IMAGE_SOURCES == allowed


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_have_folders_that_their_user_may_write(file: Path) -> None:
    last_stage = file.read_text().rpartition("\nFROM ")[2]
    set_to = dict(re.findall(r"NEUROPRUNE_(\w+)=(\S+)", last_stage))
    [made] = re.findall(r"install --directory --owner neuroprune --group neuroprune((?:[\s\\]+/\S+)+)", last_stage)
    # Both processes write there: the API fetches an upload from S3 before it checks it.
    folders = {set_to[name] for name in ("STORAGE_URL", "WORK_DIR", "HUB_HOME") if name in set_to}
    assert folders == set(made.replace("\\", " ").split())


@pytest.mark.parametrize("file", ["docker-compose.yml", "docker/compose.gpu.yml"])
def test_no_two_services_build_one_image(file: str) -> None:
    # Compose builds them at once, and the second cannot be stored: its image exists already.
    shown = yaml.safe_load(re.sub("^  # ", "  ", (ROOT / file).read_text(), flags=re.MULTILINE))["services"]
    images = [service["image"] for service in shown.values() if "build" in service]
    assert len(set(images)) == len(images)


def test_an_image_of_ours_is_built_here_or_by_who_comes_first(services: dict[str, Any]) -> None:
    for service in services.values():
        if service["image"].startswith("neuroprune-") and "build" not in service:
            first = [services[name] for name in service["depends_on"]]
            assert [other["image"] for other in first if "build" in other] == [service["image"]]
            assert service["pull_policy"] == "never"  # what a registry has under this name is not ours


def gpu_services(text: str) -> dict[str, Any]:
    return yaml.safe_load(text)["services"]


def test_no_two_services_share_a_gpu() -> None:
    text = (ROOT / "docker" / "compose.gpu.yml").read_text()
    assert set(gpu_services(text)) == {"worker"}
    shown = gpu_services(re.sub("^  # ", "  ", text, flags=re.MULTILINE))
    assert set(shown) == {"worker", "worker-1"}
    assert shown["worker-1"]["extends"] == {"file": "docker-compose.yml", "service": "worker"}
    assert shown["worker-1"]["build"] == shown["worker"]["build"]
    devices = [
        device for service in shown.values() for device in service["deploy"]["resources"]["reservations"]["devices"]
    ]
    assert [device.pop("device_ids") for device in devices] == [["0"], ["1"]]
    assert devices == [{"driver": "nvidia", "capabilities": ["gpu"]}] * 2  # a count would always take the first one
