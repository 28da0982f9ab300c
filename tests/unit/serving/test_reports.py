from handbill.serving.reports import EngineReports
from handbill.serving.sequences import EngineStats


def stats(engine, tokens):
    rest = dict.fromkeys(("running", "waiting", "adapters", "adapter_loads"), 0)
    return EngineStats(engine=engine, tokens=tokens, prefix_hits=0, prefix_misses=0, **rest)


def test_the_newest_of_every_engine_that_is_there():
    now = 0.0
    reports = EngineReports(clock=lambda: now)
    reports.put(stats("b", 1))
    reports.put(stats("a", 2))
    now = 9.0
    reports.put(stats("b", 3))
    assert {name: one.tokens for name, one in reports.latest().items()} == {"a": 2, "b": 3}
    now = 11.0  # a was killed
    assert list(reports.latest()) == ["b"]
