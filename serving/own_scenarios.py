"""Tenants' own scenarios: a file each, laid over the shipped one."""

import logging
import shutil
from pathlib import Path

from handbill.errors import InputError
from handbill.generator.artifacts import check_tenant
from handbill.generator.scenarios import Scenarios, read_scenarios, shipped
from handbill.serving.registry import Route

log = logging.getLogger(__name__)


class OwnScenarios:
    """The scenarios of every tenant. A file that was changed is in effect with the next request.

    Args:
        folder: Holds ``TENANT.toml`` of those that have their own; need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, tuple[tuple[int, int], Scenarios]] = {}
        self._told: dict[str, tuple[str, str]] = {}

    def check(self) -> None:
        """Read all of them.

        Raises:
            InputError: One is wrong, with its place.
        """
        for file in sorted(self._folder.glob("*.toml")):
            read_scenarios(file)

    def of(self, tenant: str) -> Scenarios:
        """A tenant's; a file that has become wrong changes nothing until it is right again."""
        file = self.file(tenant)
        try:
            facts = file.stat()
        except OSError:
            self._read.pop(tenant, None)
            return shipped()
        stamp = (facts.st_mtime_ns, facts.st_size)
        read, scenarios = self._read.get(tenant, ((0, 0), shipped()))
        if read != stamp:
            try:
                scenarios = read_scenarios(file)
            except InputError:
                log.error("scenarios_refused", extra={"tenant": tenant})  # noqa: TRY400
            self._read[tenant] = stamp, scenarios
        return scenarios

    def put(self, tenant: str, own: Path) -> None:
        """Give a tenant a file of its own, once it is found right.

        Raises:
            InputError: It is wrong, with its place.
        """
        read_scenarios(own)
        self._folder.mkdir(parents=True, exist_ok=True)
        file = self.file(tenant)
        new = file.with_suffix(".new")
        shutil.copyfile(own, new)
        new.replace(file)

    def remove(self, tenant: str) -> None:
        """Take a tenant's file away."""
        self.file(tenant).unlink(missing_ok=True)

    def compare(self, tenant: str, scenarios: Scenarios, route: Route) -> bool:
        """Whether a tenant's own adapter is asked as it was trained to be; the log says once where not.

        Copy is served either way: an adapter that is asked otherwise writes as well as the base
        model's grasp of the new words lets it.
        """
        if route.kind != "tenant" or route.prompts == scenarios.prompts:
            return True
        told = route.digest, scenarios.prompts
        if self._told.get(tenant) != told:
            self._told[tenant] = told
            log.warning(
                "scenarios_differ_from_training",
                extra={
                    "tenant": tenant,
                    "artifact": route.digest,
                    "trained_with": route.prompts or "shipped",
                    "served_with": scenarios.prompts or "shipped",
                },
            )
        return False

    def file(self, tenant: str) -> Path:
        """Where a tenant's file is."""
        return self._folder / f"{check_tenant(tenant)}.toml"
