from pathlib import Path

import pytest

from handbill.errors import InputError
from handbill.serving.config import ServingConfig


def test_the_environment_feeds_every_kind_of_field_and_arguments_win():
    environ = {
        "HANDBILL_SERVING_MAX_BATCH": "3",
        "HANDBILL_SERVING_POLL_S": "0.5",
        "HANDBILL_SERVING_REGISTRY": "/registry",
        "HANDBILL_SERVING_PORT": "9000",
    }
    config = ServingConfig.from_env(environ, state=Path("state"), port=1234, base=None)
    assert (config.max_batch, config.poll_s, config.port) == (3, 0.5, 1234)
    assert config.registry == Path("/registry")
    assert config.base == "smollm2-135m"


def test_a_variable_that_does_not_parse_is_named():
    with pytest.raises(InputError, match="HANDBILL_SERVING_PORT='http'"):
        ServingConfig.from_env({"HANDBILL_SERVING_PORT": "http"}, registry="r", state="s")


@pytest.mark.parametrize(
    "wrong",
    [
        {"slots": 0},
        {"replicas": 0},
        {"max_replicas": 1, "replicas": 2},
        {"prefill_tokens": 0},
        {"prefix_cache_bytes": -1},
        {"dtype": "int8"},
        {"device": "tpu"},
        {"engine": "tgi"},
        {"dtype": "float16", "engine": "vllm"},
        {"port": 70000},
        {"max_tokens": 4096},
        {"burst": 1},
        {"poll_s": 0},
    ],
)
def test_what_cannot_be_is_refused_by_name(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        ServingConfig(registry=Path("r"), state=Path("s"), **wrong)
