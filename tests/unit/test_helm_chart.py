"""deploy/kubernetes: the rendered manifests are those of the chart, fit together, and hold no secret."""

import hashlib
import json
import re
import tomllib
from base64 import b64encode
from copy import deepcopy
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped] # its stubs would be one more dependency
from fastapi.routing import APIRoute
from jsonschema import Draft7Validator

from app.api.ops import router
from app.settings import Settings, load_settings, setting_names
from app.settings.misspelt import misspelt_settings
from tests.unit.test_env_example import REQUIRED

ROOT = Path(__file__).parents[2]
KUBERNETES = ROOT / "deploy" / "kubernetes"
CHART = KUBERNETES / "plusofon-verify"
RENDERED = KUBERNETES / "rendered"
VALUES: dict[str, Any] = yaml.safe_load((CHART / "values.yaml").read_text(encoding="utf-8"))
SCHEMA: dict[str, Any] = json.loads((CHART / "values.schema.json").read_text(encoding="utf-8"))
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")

SETS = ("default", "full")
MADE_UP = {
    **REQUIRED,
    "SECRET_NAMES_KEY": "not-a-real-name-key-0123456789-0123456789",
    "ADMIN_KEYS": f"ops:{'1' * 64}",
    "METRICS_KEYS": f"prometheus:{'2' * 64}",
    "RELAY_URL": "https://calls.example/verify",
    "RELAY_SECRET": "whsec_" + b64encode(b"not-a-real-secret-0123456").decode(),
}


def manifests(name: str) -> list[dict[str, Any]]:
    return [found for found in yaml.safe_load_all((RENDERED / f"{name}.yaml").read_text(encoding="utf-8")) if found]


def one(kind: str, name: str = "full") -> Any:  # noqa: ANN401 - YAML
    (found,) = (manifest for manifest in manifests(name) if manifest["kind"] == kind)
    return found


def pod(name: str) -> Any:  # noqa: ANN401 - YAML
    return one("Deployment", name)["spec"]["template"]["spec"]


def container(name: str) -> Any:  # noqa: ANN401 - YAML
    (found,) = pod(name)["containers"]
    return found


def given_values(name: str) -> dict[str, Any]:
    """Return the values of a set on top of the defaults, as Helm merges them."""
    return merged(VALUES, yaml.safe_load((RENDERED / f"{name}.values.yaml").read_text(encoding="utf-8")))


def merged(default: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    both = deepcopy(default)
    for name, value in given.items():
        both[name] = merged(both[name], value) if isinstance(both.get(name), dict) else value
    return both


def faults(values: dict[str, Any]) -> list[str]:
    return [error.message for error in Draft7Validator(SCHEMA).iter_errors(values)]


def environment(name: str) -> dict[str, str]:
    """Return the variables of the container; those of ``env`` take precedence over those of the ConfigMap."""
    (source,) = container(name)["envFrom"]
    config = one("ConfigMap", name)
    assert source == {"configMapRef": {"name": config["metadata"]["name"]}}
    return {**config["data"], **{variable["name"]: variable["value"] for variable in container(name)["env"]}}


def load(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Load the settings as a pod would, from its variables, and from files with made-up secrets."""
    monkeypatch.chdir(folder)  # where .env is looked for
    for setting in setting_names():
        monkeypatch.delenv(setting, raising=False)
    for variable, value in environment(name).items():
        if variable.endswith("_FILE"):
            (folder / variable).write_text(MADE_UP[variable.removesuffix("_FILE")] + "\n")
        monkeypatch.setenv(variable, str(folder / variable) if variable.endswith("_FILE") else value)
    return load_settings()


def test_the_rendered_manifests_are_those_of_the_chart() -> None:
    """`make helm` records the digest of each file of the chart and of what it rendered from them."""
    files = [path for folder in (CHART, RENDERED) for path in folder.rglob("*") if path.is_file()]
    digests = {
        str(path.relative_to(KUBERNETES)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.name != "SHA256SUMS"
    }
    lines = (RENDERED / "SHA256SUMS").read_text(encoding="utf-8").splitlines()

    assert digests == {file: digest for digest, file in (line.split("  ") for line in lines)}, "run make helm"


def test_the_chart_has_the_version_of_the_service() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text(encoding="utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    assert chart["appVersion"] == project["version"]
    assert chart["name"] == project["name"]


def test_only_what_needs_no_knowledge_of_the_cluster_is_on_by_default() -> None:
    always = {"ConfigMap", "Deployment", "PodDisruptionBudget", "Service"}

    assert sorted(manifest["kind"] for manifest in manifests("default")) == sorted(always)
    assert sorted(manifest["kind"] for manifest in manifests("full")) == sorted(
        {*always, "HorizontalPodAutoscaler", "Ingress", "NetworkPolicy", "ServiceMonitor"}
    )


@pytest.mark.parametrize("name", SETS)
def test_selectors_match_the_pods(name: str) -> None:
    labels = one("Deployment", name)["spec"]["template"]["metadata"]["labels"].items()

    assert one("Service", name)["spec"]["selector"].items() <= labels
    for kind in ("Deployment", "PodDisruptionBudget"):
        assert one(kind, name)["spec"]["selector"]["matchLabels"].items() <= labels
    (near,) = pod(name)["affinity"]["podAntiAffinity"]["preferredDuringSchedulingIgnoredDuringExecution"]
    (spread,) = pod(name)["topologySpreadConstraints"]
    assert near["podAffinityTerm"]["labelSelector"]["matchLabels"].items() <= labels
    assert spread["labelSelector"]["matchLabels"].items() <= labels
    if name == "full":
        assert one("NetworkPolicy")["spec"]["podSelector"]["matchLabels"].items() <= labels


def test_the_selector_of_the_deployment_has_no_version() -> None:
    """It cannot be changed, so an upgrade would be refused."""
    assert sorted(one("Deployment")["spec"]["selector"]["matchLabels"]) == [
        "app.kubernetes.io/instance",
        "app.kubernetes.io/name",
    ]


@pytest.mark.parametrize("name", SETS)
def test_requests_reach_the_port_on_which_the_service_listens(name: str) -> None:
    (port,) = container(name)["ports"]
    (service_port,) = one("Service", name)["spec"]["ports"]

    assert environment(name)["PORT"] == str(port["containerPort"])
    assert f"EXPOSE {port['containerPort']}\n" in DOCKERFILE
    assert environment(name)["HOST"] in {"0.0.0.0", "::"}
    assert service_port["targetPort"] == port["name"]


def test_the_ingress_leads_to_the_service() -> None:
    (rule,) = one("Ingress")["spec"]["rules"]
    (tls,) = one("Ingress")["spec"]["tls"]
    service = one("Service")

    assert tls["hosts"] == [rule["host"]]
    assert [path["path"] for path in rule["http"]["paths"]] == given_values("full")["ingress"]["paths"]
    for path in rule["http"]["paths"]:
        assert path["backend"]["service"] == {
            "name": service["metadata"]["name"],
            "port": {"name": service["spec"]["ports"][0]["name"]},
        }


def test_the_autoscaler_scales_the_deployment_which_leaves_the_number_of_pods_to_it() -> None:
    spec = one("HorizontalPodAutoscaler")["spec"]
    deployment = one("Deployment")

    assert spec["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert "replicas" not in deployment["spec"]
    assert "cpu" in container("full")["resources"]["requests"]  # of which the target is a percentage
    assert 1 <= spec["minReplicas"] <= spec["maxReplicas"]


@pytest.mark.parametrize("name", SETS)
def test_an_update_never_has_fewer_ready_pods_than_before(name: str) -> None:
    assert one("Deployment", name)["spec"]["strategy"] == {
        "type": "RollingUpdate",
        "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1},
    }


@pytest.mark.parametrize("name", SETS)
def test_probes_ask_routes_that_exist_and_only_readiness_asks_redis(name: str) -> None:
    paths = {route.path for route in router.routes if isinstance(route, APIRoute)}
    probes = {kind: container(name)[f"{kind}Probe"]["httpGet"] for kind in ("startup", "liveness", "readiness")}

    assert {kind: probe["path"] for kind, probe in probes.items()} == {
        "startup": "/livez",
        "liveness": "/livez",
        "readiness": "/readyz",
    }
    assert {"/livez", "/readyz", "/metrics"} <= paths
    assert {probe["port"] for probe in probes.values()} == {container(name)["ports"][0]["name"]}


@pytest.mark.parametrize("name", SETS)
def test_a_pod_is_not_killed_before_its_longest_request_is_answered(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(name, tmp_path, monkeypatch)
    pause = container(name)["lifecycle"]["preStop"]["sleep"]["seconds"]

    assert pause >= 1
    # As with systemd and compose: 12 seconds for a request by default, and 8 for the rest.
    assert pod(name)["terminationGracePeriodSeconds"] == pause + ceil(settings.longest_request.total_seconds()) + 8


@pytest.mark.parametrize("name", SETS)
def test_the_service_starts_with_the_variables_of_the_pod(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load(name, tmp_path, monkeypatch)

    assert misspelt_settings() == {}
    assert {variable.removesuffix("_FILE") for variable in environment(name)} <= set(setting_names())
    given = given_values(name)["settings"]
    assert settings.limit.calls_per_day == given.get("LIMIT_CALLS_PER_DAY", 1000)
    assert settings.workers == given.get("WORKERS", 1)
    assert settings.guard.enabled


@pytest.mark.parametrize("name", SETS)
def test_secrets_are_mounted_read_only_and_each_file_that_a_variable_names_is_there(name: str) -> None:
    (volume,) = (volume for volume in pod(name)["volumes"] if volume["name"] == "secrets")
    (mount,) = (mount for mount in container(name)["volumeMounts"] if mount["name"] == "secrets")
    mounted = {
        f"{mount['mountPath']}/{item['path']}": (source["secret"]["name"], item["key"])
        for source in volume["projected"]["sources"]
        for item in source["secret"]["items"]
    }
    named = {value: variable for variable, value in environment(name).items() if variable.endswith("_FILE")}
    values = given_values(name)
    url = values["redis"]["urlSecret"]

    assert mount["readOnly"] is True
    assert volume["projected"]["defaultMode"] == 0o440
    assert mounted.keys() == named.keys()
    for file, variable in named.items():
        setting = variable.removesuffix("_FILE")
        assert setting_names()[setting].is_secret
        secret = values["secret"]["name"]
        assert mounted[file] == ((url["name"] or secret, url["key"]) if setting == "REDIS_URL" else (secret, setting))
    assert set(REQUIRED) <= {variable.removesuffix("_FILE") for variable in named.values()}


@pytest.mark.parametrize("name", SETS)
def test_no_manifest_holds_a_secret(name: str) -> None:
    secrets = {setting for setting, found in setting_names().items() if found.is_secret}

    assert not [manifest for manifest in manifests(name) if manifest["kind"] == "Secret"]
    assert not secrets & environment(name).keys()


@pytest.mark.parametrize("name", SETS)
def test_the_pod_meets_the_restricted_security_standard_of_kubernetes(name: str) -> None:
    found = re.search(r"^USER (\d+):(\d+)$", DOCKERFILE, re.MULTILINE)
    assert found
    user, group = map(int, found.groups())

    assert pod(name)["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": user,
        "runAsGroup": group,
        "fsGroup": group,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container(name)["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert pod(name)["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC", "initContainers"} & pod(name).keys()
    assert not [volume for volume in pod(name)["volumes"] if "hostPath" in volume]


@pytest.mark.parametrize("name", SETS)
def test_the_pod_has_memory_limits_and_a_writable_tmp_in_memory(name: str) -> None:
    (mount,) = (mount for mount in container(name)["volumeMounts"] if mount["mountPath"] == "/tmp")
    (volume,) = (volume for volume in pod(name)["volumes"] if volume["name"] == mount["name"])

    assert volume["emptyDir"] == {"medium": "Memory", "sizeLimit": "64Mi"}
    assert container(name)["resources"].keys() == {"requests", "limits"}
    assert container(name)["resources"]["limits"].keys() == {"memory"}


def test_the_image_has_no_default_registry_and_a_pinned_version() -> None:
    assert VALUES["image"]["repository"] == ""
    assert container("default")["image"] == "images.example/plusofon-verify:0.1.0"
    assert re.fullmatch(r"images\.example/plusofon-verify@sha256:[0-9a-f]{64}", container("full")["image"])


def test_a_change_of_the_settings_replaces_the_pods() -> None:
    digests = {
        one("Deployment", name)["spec"]["template"]["metadata"]["annotations"]["checksum/settings"] for name in SETS
    }

    assert len(digests) == len(SETS)


def test_the_network_policy_opens_the_port_of_the_service_and_the_ways_out_that_it_needs() -> None:
    spec = one("NetworkPolicy")["spec"]
    values = given_values("full")["networkPolicy"]
    ways = {tuple((port["protocol"], port["port"]) for port in rule["ports"]): rule["to"] for rule in spec["egress"]}
    (incoming,) = spec["ingress"]

    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert incoming["ports"] == [{"protocol": "TCP", "port": container("full")["ports"][0]["containerPort"]}]
    assert incoming["from"] == values["clients"] + values["prometheus"]
    assert ways == {
        (("UDP", 53), ("TCP", 53)): values["dns"],
        (("TCP", 6379),): values["redis"]["to"],
        (("TCP", 443),): values["https"]["to"],
        (("TCP", 3128),): values["extraEgress"][0]["to"],
    }


def test_the_service_monitor_reads_the_metrics_of_each_pod_with_a_key_from_a_secret() -> None:
    spec = one("ServiceMonitor")["spec"]
    service = one("Service")
    prometheus = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text(encoding="utf-8"))

    assert one("ServiceMonitor")["apiVersion"] == "monitoring.coreos.com/v1"
    assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    # The alert rules and the dashboard select by the name of the job.
    assert service["metadata"]["labels"][spec["jobLabel"]] == prometheus["scrape_configs"][0]["job_name"]
    assert spec["endpoints"] == [
        {
            "port": service["spec"]["ports"][0]["name"],
            "path": "/metrics",
            "interval": prometheus["global"]["scrape_interval"],
            "authorization": {
                "type": "Bearer",
                "credentials": {"name": "plusofon-verify-metrics", "key": "key"},
            },
        }
    ]


@pytest.mark.parametrize("name", SETS)
def test_the_schema_accepts_the_values_of_each_set(name: str) -> None:
    Draft7Validator.check_schema(SCHEMA)

    assert faults(given_values(name)) == []


def test_the_schema_describes_exactly_the_values_that_there_are() -> None:
    def compare(values: dict[str, Any], schema: dict[str, Any], path: str) -> None:
        if "properties" in schema:
            assert schema["additionalProperties"] is False, path
            assert values.keys() == schema["properties"].keys() - ({"global"} if not path else set()), path
            for name, value in values.items():
                compare(value, schema["properties"][name], f"{path}.{name}")

    compare(VALUES, SCHEMA, "")


@pytest.mark.parametrize("setting", sorted(setting_names()))
def test_the_schema_refuses_secrets_among_the_plain_settings(setting: str) -> None:
    values = merged(VALUES, {"settings": {setting: "x"}})
    decided_here = {"PORT", "TLS_CERT_FILE", "TLS_KEY_FILE"}

    assert bool(faults(values)) == (setting_names()[setting].is_secret or setting in decided_here)


def test_the_schema_knows_which_settings_a_secret_may_and_must_have() -> None:
    schema = SCHEMA["properties"]["secret"]["properties"]["settings"]
    secrets = {setting for setting, found in setting_names().items() if found.is_secret}

    assert set(schema["items"]["enum"]) == secrets - {"REDIS_URL"}
    assert {rule["contains"]["const"] for rule in schema["allOf"]} == set(REQUIRED) - {"REDIS_URL"}
    assert faults(merged(VALUES, {"secret": {"settings": ["SECRET_KEY"]}}))


@pytest.mark.parametrize(
    "wrong",
    [
        {"replica": 3},
        {"image": {"repository": "images.example/plusofon-verify:latest"}},
        {"image": {"digest": "sha256:abc"}},
        {"settings": {"redis_url": "redis://redis"}},
        {"settings": {"CHANNELS": ["voice"]}},
        {"preStopSeconds": 0},
    ],
    ids=str,
)
def test_the_schema_refuses_wrong_values(wrong: dict[str, Any]) -> None:
    assert faults(merged(VALUES, wrong))


def test_every_value_is_used_by_a_template() -> None:
    templates = "\n".join(path.read_text(encoding="utf-8") for path in (CHART / "templates").iterdir())

    assert set(re.findall(r"\.Values\.(\w+)", templates)) == VALUES.keys()


def test_the_table_of_the_readme_has_every_value() -> None:
    readme = (KUBERNETES / "README.md").read_text(encoding="utf-8")
    named = [
        value
        for row in re.findall(r"^\| (`[^|]*) \|", readme, re.MULTILINE)
        for value in re.findall(r"`([\w.]+)`", row)
    ]

    for value in named:
        found: Any = VALUES
        for part in value.split("."):
            assert part in found, value
            found = found[part]
    assert {value.partition(".")[0] for value in named} == VALUES.keys()
