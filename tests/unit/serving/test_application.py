"""The service in a cluster: what Serve's configuration builds, and the shipped manifest."""

import warnings
from pathlib import Path

import pytest
import yaml

from handbill.errors import InputError
from handbill.serving import application
from handbill.serving.config import ServingConfig

ROOT = Path(__file__).resolve().parents[3]
SERVICE, POLICY = yaml.safe_load_all((ROOT / "deploy" / "kuberay.yaml").read_text())
with warnings.catch_warnings(action="ignore"):  # of Ray's own declarations
    from ray.serve.schema import ServeDeploySchema
SERVE = ServeDeploySchema.model_validate(yaml.safe_load(SERVICE["spec"]["serveConfigV2"]))
(APP,) = SERVE.applications


@pytest.fixture
def args(base, tmp_path):
    return {
        "registry": str(tmp_path / "registry"),
        "state": str(tmp_path / "serving"),
        "base": str(base.path),
        "database_url": "postgresql+psycopg://db.example.org/handbill",
    }


def engine_of(built):
    """The engine's deployment, which the gateway is bound to."""
    (engine,) = built._bound_deployment.init_args
    return engine._bound_deployment


def test_the_manifest_builds_what_is_there():
    module, _, name = APP.import_path.partition(":")
    assert module == application.__name__
    assert callable(getattr(application, name))
    config = ServingConfig.from_env({}, **{**APP.args, "registry": Path("r"), "state": Path("s")})
    assert config.device == "cuda"
    engines = SERVICE["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    assert engines["maxReplicas"] == config.most_replicas
    limits = engines["template"]["spec"]["containers"][0]["resources"]["limits"]
    assert limits["nvidia.com/gpu"] == "1"


def test_the_manifest_has_the_version_that_is_pinned_and_asks_for_a_token():
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    cluster = SERVICE["spec"]["rayClusterConfig"]
    assert any(
        line.startswith("ray") and line.endswith(f"=={cluster['rayVersion']}") for line in pinned
    )
    assert cluster["authOptions"] == {"mode": "token"}
    pods = [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]
    for pod in pods:
        assert pod["template"]["metadata"]["labels"]["app"] == "handbill"
        (container,) = pod["template"]["spec"]["containers"]
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert pod["template"]["spec"]["securityContext"]["runAsNonRoot"]
    assert POLICY["spec"]["podSelector"] == {"matchLabels": {"app": "handbill"}}
    assert POLICY["spec"]["policyTypes"] == ["Ingress", "Egress"]


def test_engines_are_as_many_as_asked_for(args):
    fixed = engine_of(application.cluster({**args, "replicas": 3}))
    assert fixed.num_replicas == 3
    growing = engine_of(application.cluster({**args, "replicas": 1, "max_replicas": 4}))
    scaling = growing._deployment_config.autoscaling_config
    assert (scaling.min_replicas, scaling.max_replicas) == (1, 4)
    for device, gpus in (("cpu", 0), ("cuda", 1)):
        options = engine_of(application.cluster({**args, "device": device})).ray_actor_options
        assert options["num_gpus"] == gpus


def test_what_a_cluster_cannot_be_built_of_is_named(args):
    with pytest.raises(InputError, match="HANDBILL_SERVING_DATABASE_URL"):
        application.cluster({**args, "database_url": ""})
    with pytest.raises(InputError, match="replica"):
        application.cluster({**args, "replica": 2})
