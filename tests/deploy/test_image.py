"""The Dockerfile and compose.yaml; neither is built or started."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
import yaml

from forebay.settings import Settings
from tests.deploy import files

_DOCKERFILE = files.DEPLOY / "Dockerfile"
_COMPOSE = files.DEPLOY / "compose.yaml"
_SERVICES: dict[str, dict[str, Any]] = files.document(_COMPOSE)["services"]


def _instructions() -> list[tuple[str, str]]:
    lines = [line for line in _DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(words[0], words[1]) for line in text.splitlines() if len(words := line.split(None, 1)) == 2]


def _last(name: str) -> str:
    return [value for instruction, value in _instructions() if instruction == name][-1]


def test_hadolint_finds_nothing() -> None:
    files.assert_silent(files.run("hadolint", "--no-color", _DOCKERFILE))


def test_the_image_runs_as_nobody_of_importance() -> None:
    assert _last("USER") == "10001:10001"


def test_the_server_gets_its_signals_itself() -> None:
    command = json.loads(_last("CMD"))
    assert command[:2] == ["chainlit", "run"]
    assert json.loads(_last("HEALTHCHECK").split("CMD", 1)[1])[0] == "python"


def test_what_is_copied_is_sent_to_the_builder() -> None:
    copied = {
        source
        for instruction, value in _instructions()
        if instruction == "COPY" and "--from" not in value
        for source in value.split()[:-1]
    }
    ignore = (files.DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line.removeprefix("!") for line in ignore if line.startswith("!")}
    assert copied == sent
    assert all((files.ROOT / name).exists() for name in copied)


def test_the_metrics_can_be_reached_from_outside_the_container() -> None:
    address = files.image_environment()["FOREBAY_METRICS_ADDRESS"]
    port = address.removeprefix("0.0.0.0:")
    assert address != port
    assert port in _last("EXPOSE").split()
    assert f"127.0.0.1:{port}/healthz" in _last("HEALTHCHECK")
    (job,) = files.document(files.DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert job["static_configs"] == [{"targets": [f"app:{port}"]}]
    assert "app" in _SERVICES


def test_compose_follows_the_specification() -> None:
    done = files.run("check-jsonschema", "--builtin-schema", "vendor.compose-spec", _COMPOSE)
    assert done.returncode == 0, done.stdout + done.stderr


def test_compose_names_what_is_there() -> None:
    named = set(files.document(_COMPOSE)["volumes"])
    for name, service in _SERVICES.items():
        for mount in service.get("volumes", []):
            source = mount.split(":")[0]
            assert source in named or (files.DEPLOY / source).exists(), mount
        for other in service.get("depends_on", []):
            assert other in _SERVICES, name
    build = _SERVICES["app"]["build"]
    assert (files.DEPLOY / build["context"] / build["dockerfile"]).resolve() == _DOCKERFILE


def test_compose_asks_for_the_variables_of_the_example() -> None:
    asked = set(re.findall(r"\$\{(\w+)", _COMPOSE.read_text()))
    example = (files.DEPLOY / "example.env").read_text()
    assert asked == set(re.findall(r"^(\w+)=", example, re.MULTILINE))
    secrets = asked - {"CHAT_USER"}
    for name in secrets:  # there is no default for a secret, in neither file
        assert re.search(rf"^{name}=$", example, re.MULTILINE)
        assert len(re.findall(rf"\${{{name}:\?", _COMPOSE.read_text())) == _COMPOSE.read_text().count(
            f"${{{name}"
        )


def test_compose_listens_on_this_machine_alone() -> None:
    ports = [port for service in _SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(port.startswith("127.0.0.1:") for port in ports)


def test_compose_migrates_first_and_gives_time_to_drain() -> None:
    app = _SERVICES["app"]
    done = {"condition": "service_completed_successfully"}
    assert app["depends_on"] == {"grants": done}
    assert _SERVICES["grants"]["depends_on"] == {"migrate": done}
    assert _SERVICES["migrate"]["command"] == ["forebay", "migrate"]
    assert _SERVICES["migrate"]["depends_on"] == {"roles": done}
    close_timeout = Settings.model_fields["close_timeout"].default
    assert int(app["stop_grace_period"].removesuffix("s")) > 2 * close_timeout


def test_compose_keeps_journals_and_attachments_on_volumes() -> None:
    image = files.image_environment()
    mounted = {mount.split(":")[1]: mount.split(":")[0] for mount in _SERVICES["app"]["volumes"]}
    named = files.document(_COMPOSE)["volumes"]
    for variable in ("FOREBAY_JOURNAL_DIR", "FOREBAY_STORAGE_DIR"):
        assert mounted[image[variable]] in named
    (made,) = [value for instruction, value in _instructions() if "install --directory" in value]
    for folder in mounted:  # or the volume would be root's
        assert folder in made.split()
    defaults = {
        f"FOREBAY_{name.upper()}": str(field.default) for name, field in Settings.model_fields.items()
    }
    assert files.journal_volume(_SERVICES["app"]["environment"]) < files.journal_volume(defaults)


def test_compose_uses_no_superuser_but_to_make_roles() -> None:
    def user(service: str) -> str:
        return str(_SERVICES[service]["environment"]["FOREBAY_DATABASE_URL"]).split("//")[1].split(":")[0]

    roles = dict(word.removeprefix("--variable=").split("=") for word in _SERVICES["roles"]["command"]
                 if word.startswith("--variable="))  # fmt: skip
    assert user("migrate") == roles["owner"] == _SERVICES["grants"]["environment"]["PGUSER"]
    assert user("app") == roles["app"]
    assert f"--variable=app={roles['app']}" in _SERVICES["grants"]["command"]
    assert "POSTGRES_PASSWORD" not in yaml.safe_dump(
        {"app": _SERVICES["app"], "migrate": _SERVICES["migrate"]}
    )
    assert "PASSWORD" not in " ".join(_SERVICES["roles"]["command"])


@pytest.mark.parametrize("service", ["app", "migrate", "roles", "grants"])
def test_what_is_ours_may_do_little(service: str) -> None:
    assert _SERVICES[service]["cap_drop"] == ["ALL"]
    assert _SERVICES[service]["read_only"] is True


@pytest.mark.parametrize("service", _SERVICES)
def test_nothing_gains_privileges_and_every_image_has_a_version(service: str) -> None:
    assert _SERVICES[service]["security_opt"] == ["no-new-privileges:true"]
    if "build" not in _SERVICES[service]:
        assert re.fullmatch(r"[\w/.-]+:v?\d[\w.]*(@sha256:[0-9a-f]{64})?", _SERVICES[service]["image"])


def test_the_database_is_reached_by_those_who_need_it() -> None:
    assert files.document(_COMPOSE)["networks"]["database"]["internal"] is True
    there = {name for name, service in _SERVICES.items() if "database" in service["networks"]}
    assert there == {"postgres", "roles", "migrate", "grants", "app"}
    assert _SERVICES["postgres"]["networks"] == ["database"]
    assert "ports" not in _SERVICES["postgres"]


def test_compose_is_read_with_its_anchors_filled_in() -> None:
    assert "<<" not in yaml.safe_dump(_SERVICES)
