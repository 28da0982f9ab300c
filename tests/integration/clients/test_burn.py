"""A trainer that dies while it writes that an update may be in a sum: it is sent again, or never."""

import multiprocessing
import os

import numpy as np
import pytest

from handbill.clients.journal import Journal
from handbill.federation.messages import Instruction, Recipe
from handbill.privacy.faults import EXIT_CODE, VARIABLE

pytestmark = pytest.mark.integration
FORK = multiprocessing.get_context("fork")
POINTS = {"journal.burn.before": False, "journal.burn.after": True}  # is it burnt?


@pytest.mark.parametrize(("point", "burnt"), POINTS.items())
def test_an_update_is_burnt_before_anything_is_signed_or_not_at_all(
    tmp_path, tiny_base, tiny_model, point, burnt
):
    asked = Instruction(
        merchant="shop-a",
        run="run-1",
        round=1,
        attempt=1,
        stage="global",
        parent="sha256:1",
        base_digest=tiny_base.digest,
        spec=tiny_model.spec,
        recipe=Recipe(),
    )
    Journal(tmp_path).keep(asked, {"w": np.ones(2, np.float32)})

    def work():
        os.environ[VARIABLE] = f"{point}=exit"
        Journal(tmp_path).burn(asked)

    worker = FORK.Process(target=work)
    worker.start()
    worker.join(60)
    assert worker.exitcode == EXIT_CODE
    assert (Journal(tmp_path).recall(asked) is None) == burnt
