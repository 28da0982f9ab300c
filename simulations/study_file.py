"""The SQLite file of a search: opened again where it is of the same one, refused where it is not."""

import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from handbill.errors import InputError

if TYPE_CHECKING:
    from optuna import Study

STUDY: Final = "handbill tune"


@contextmanager
def open_study(file: Path, facts: Mapping[str, object]) -> "Iterator[Study]":
    """The search that a file holds, or a new one in it.

    Args:
        file: Made where there is none.
        facts: What every loss in it depends on, as plain values.

    Raises:
        InputError: optuna is not installed, or the file is of another search or of none.
    """
    try:
        import optuna
    except ImportError as error:
        raise InputError("tune needs its package: pip install 'handbill[tune]'") from error
    optuna.logging.set_verbosity(optuna.logging.ERROR)  # one line a trial is told by the command
    if file.exists() and not _holds_studies(file):
        raise InputError(f"{file}: not the file of a search; give another --out")
    file.parent.mkdir(parents=True, exist_ok=True)
    storage = optuna.storages.RDBStorage(f"sqlite:///{file}")
    try:
        study = optuna.create_study(
            storage=storage,
            study_name=STUDY,
            load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=4, n_warmup_steps=3),
        )
        there = study.user_attrs.get("facts", facts)
        names = [name for name in facts if there.get(name) != facts[name]]
        if names:
            shown = ", ".join(f"{name} {there.get(name)}, not {facts[name]}" for name in names)
            raise InputError(f"{file}: holds another search ({shown}); give another --out")
        study.set_user_attr("facts", dict(facts))
        yield study
    finally:
        storage.remove_session()
        storage.engine.dispose()


def _holds_studies(file: Path) -> bool:
    try:
        with closing(sqlite3.connect(f"{file.absolute().as_uri()}?mode=ro", uri=True)) as database:
            asked = "SELECT count(*) FROM sqlite_master WHERE name = 'studies'"
            return bool(database.execute(asked).fetchone()[0])
    except sqlite3.DatabaseError:
        return False
