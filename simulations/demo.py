"""The whole path on one machine, by the commands real users type: shops' data to served copy.

Every program is a real one: a SuperLink, three merchants with a trainer, a SuperNode and keys of
their own, Ray Serve. The demo only starts them, waits, shows what happens, and stops them.
"""

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from handbill.clients.checks import check_shop
from handbill.clients.daemon import EVALUATE, ask
from handbill.clients.descriptions import ShopSource
from handbill.clients.markets import find_shops
from handbill.clients.rejects import RejectFile
from handbill.clients.run import init_merchant
from handbill.clients.shop import no_usable_row
from handbill.errors import HandbillError, InputError
from handbill.federation.secagg.session import MIN_COHORT
from handbill.federation.supervision import Children
from handbill.generator.base_models import resolve_base
from handbill.server.operate import drive, enrol, init_server, new_run_id
from handbill.server.settings import AdapterSettings, SecureAggregation, ServerSettings
from handbill.simulations.market import write_sample_market
from handbill.simulations.watch import Watch

MARK: Final = "demo.json"
WORLD: Final = ("server", "serving", "shops", "market", "logs")
PING_WARM: Final = "ping warm"
PING_COLD: Final = "ping cold"
NOTEBOOK: Final = {"title": "Field notebook", "shopper": "sketching outdoors", "explain": True}
COLD_STAGE: Final = "time a round without the warm trainer"


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoConfig:
    """What a demo run does.

    Attributes:
        data: Folder of a market; the sample market when None.
        evaluate_rows: Held-out shoppers of each shop whose loss is measured at the end.
        evaluate_written: How many of them copy is written for.
        shops: How many of the market's shops take part; from 5 on, only sums of their updates
            can be learnt.
        measure_cold: Also time a round without the warm trainer.
    """

    home: Path
    data: Path | None = None
    describe: Path | None = None
    settings: ServerSettings
    epsilon: float = 8.0
    evaluate_rows: int = 24
    evaluate_written: int = 12
    shops: int = 3
    measure_cold: bool = False


@dataclass(slots=True)
class Outcome:
    """What a demo run saw; :mod:`handbill.simulations.demo_report` makes the report of it."""

    run: str = ""
    sources: list[ShopSource] = field(default_factory=list)
    checks: dict[str, Any] = field(default_factory=dict)
    evaluations: dict[str, Any] = field(default_factory=dict)
    ledgers: dict[str, Any] = field(default_factory=dict)
    served: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    pings: dict[str, float] = field(default_factory=dict)
    facts: list[dict[str, Any]] = field(default_factory=list)
    seconds: float = 0.0


class Demo:
    """One demo run; use :meth:`run`."""

    def __init__(self, config: DemoConfig, console: Console) -> None:
        """Prepare, but start nothing."""
        self.config, self.console = config, console
        self.outcome = Outcome()
        self.watch = Watch()
        self.home = config.home.absolute()

    def run(self, *, stay: Callable[[str], None] | None = None) -> Outcome:
        """Take the whole path; whatever happens, no process is left behind.

        Args:
            stay: Called with the service's address when everything is done, before it stops.
        """
        started = time.monotonic()
        logs = self._fresh_home() / "logs"
        with self.watch, Children(logs) as children, Children(logs) as shops:
            self._prepare()
            with self._stage("start server and shops"):
                self._start_server(children)
                self._start_shops(shops, cold=False)
            self._train()
            with self._stage("measure on held-out shoppers"):
                self._evaluate()
            self._time_rounds(shops)
            shops.stop()
            children.stop()
            with self._stage("serve"):
                url = self._start_service(children)
                self._call(url)
            # What only a benchmark does is not part of the path from data to copy.
            extra = self.outcome.stages.get(COLD_STAGE, 0.0)
            self.outcome.seconds = time.monotonic() - started - extra
            if stay:
                stay(url)
        return self.outcome

    @property
    def shops(self) -> list[str]:
        """Ids of the shops that take part."""
        return [source.info.id for source in self.outcome.sources]

    def _fresh_home(self) -> Path:
        """A demo plays a new world each time: new shops, keys and ledgers."""
        parts = [self.home / name for name in WORLD]
        if any(part.exists() for part in parts) and not (self.home / MARK).is_file():
            raise InputError(
                f"{self.home}: holds a server or shops that no demo made; give another --home"
            )
        for part in parts:
            if part.is_dir():
                shutil.rmtree(part)
        self.home.mkdir(parents=True, exist_ok=True)
        (self.home / MARK).write_text(json.dumps({"made_by": "handbill demo"}) + "\n")
        return self.home

    def _prepare(self) -> None:
        with self._stage("prepare the base model"):
            base = resolve_base(self.config.settings.base)
        self._say(f"base model {base.name} ({base.digest[:19]}) is on this machine")
        with self._stage("check data, make keys"):
            data = self.config.data
            if data is None:
                data = self.home / "market"
                write_sample_market(data, shops=self.config.shops)
            self.outcome.sources = find_shops(data, describe=self.config.describe)
            self.outcome.sources = self.outcome.sources[: self.config.shops]
            if len(self.outcome.sources) < self.config.shops:
                self._say(f"{data} holds no more than {len(self.outcome.sources)} shops")
            secure = len(self.outcome.sources) >= MIN_COHORT
            settings = replace(
                self.config.settings,
                min_reports=min(self.config.settings.min_reports, len(self.outcome.sources)),
                secure_aggregation=SecureAggregation(enabled=secure),
            )
            kit = init_server(self.home / "server", settings)
            threads = 1 if len(self.outcome.sources) > 1 else 0
            for source in self.outcome.sources:
                self._check(source)
                request = init_merchant(
                    self.home / "shops" / source.info.id,
                    data=data,
                    shop=source.info.id,
                    kit=kit,
                    describe=self.config.describe,
                    threads=threads,
                    epsilon=self.config.epsilon,
                    secure_aggregation=secure,
                )
                enrol(self.home / "server", request)

    def _check(self, source: ShopSource) -> None:
        with RejectFile(self.home / "shops" / source.info.id / "rejects.jsonl") as rejects:
            report = check_shop(source, set_aside=partial(rejects.add, source.info.id))
            rejects.finish(keep_empty=False)
        if not report.rows_usable:
            raise no_usable_row(source, read=report.rows_read, set_aside=rejects.count)
        self.outcome.checks[source.info.id] = report.to_json()
        aside = f", {rejects.count} bad rows set aside" if rejects.count else ""
        self._say(f"{source.info.name}: {report.users} shoppers, {report.rows_usable} rows{aside}")

    def _start_server(self, children: Children) -> None:
        self._command(children, "server", "server", "run")
        self._ready(children, "server", "server ready", timeout_s=90)

    def _start_shops(self, children: Children, *, cold: bool) -> None:
        for shop in self.shops:
            mode = ["--cold"] if cold else []
            self._command(children, _label(shop, cold=cold), "client", "run", "--shop", shop, *mode)
        for shop in self.shops:
            self._ready(children, _label(shop, cold=cold), "is ready", timeout_s=300)

    def _train(self) -> None:
        recipe = self.config.settings.recipe
        rounds = recipe.warmup_rounds + recipe.rounds
        personal = 1 if recipe.personal_steps else 0
        self.outcome.run = new_run_id()
        columns = (
            TextColumn("  {task.description}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        with (
            self._stage("train"),
            Progress(
                *columns, console=self.console, transient=True, refresh_per_second=2
            ) as progress,
        ):
            total = (rounds + personal) * len(self.shops)
            bar = progress.add_task("waiting for the shops", total=total)
            drive(
                self.home / "server",
                self.outcome.run,
                mode="train-and-publish",
                on_event=lambda fact: self._on_fact(fact, progress, bar),
            )
        for shop in self.shops:
            self.outcome.ledgers[shop] = self._json("client", "ledger", "--shop", shop)

    def _on_fact(self, fact: dict[str, Any], progress: Progress, bar: Any) -> None:
        self.outcome.facts.append(fact)
        if fact["event"] == "round":
            named = {"warmup": "warm-up round", "global": "round"}.get(fact["stage"])
            what = f"{named} {fact['round']}" if named else "the shops' own"
            progress.update(bar, description=f"{what}: the shops train")
        elif fact["event"] == "reply":
            progress.advance(bar)
            if fact["error"]:
                self._say(f"{fact['merchant']}: {fact['error']}")
        elif fact["event"] == "committed" and fact["stage"] == "global":
            self._say(
                f"round {fact['round']} committed after {fact['seconds']:.0f} s, "
                f"probe loss {fact['probe_loss']:.3f}"
            )
        elif fact["event"] == "abandoned":
            self._say(f"round {fact['round']} abandoned: {fact['reason']}")

    def _evaluate(self) -> None:
        asked = json.dumps(
            {"rows": self.config.evaluate_rows, "written": self.config.evaluate_written}
        ).encode()

        def one(shop: str) -> Any:
            return json.loads(ask(self.home / "shops" / shop, EVALUATE, asked))

        pool = ThreadPoolExecutor(len(self.shops))
        try:
            results = list(pool.map(one, self.shops))
        finally:
            pool.shutdown(wait=False)  # after Ctrl-C the answers come when the trainers stop
        self.outcome.evaluations = dict(zip(self.shops, results, strict=True))

    def _time_rounds(self, shops: Children) -> None:
        """Time a round without training: with the warm trainer and, if asked, without it."""
        with self._stage("time an empty round"):
            self._ping(PING_WARM)
        if self.config.measure_cold:
            with self._stage(COLD_STAGE):
                shops.stop()
                self._start_shops(shops, cold=True)
                self._ping(PING_COLD)

    def _ping(self, name: str) -> None:
        fact = drive(
            self.home / "server", f"ping-{new_run_id()}", mode="ping", on_event=lambda _: None
        )
        for merchant, why in fact["failures"].items():
            self._say(f"{name}: {merchant}: {why}")
        self.outcome.pings[name] = float(fact["seconds"])

    def _start_service(self, children: Children) -> str:
        for source in self.outcome.sources:
            shop = source.info.id
            self._json("tenants", "add", shop, "--name", source.info.name, parse=False)
            key = str(self.home / "shops" / shop / "api_key")
            self._json("tenants", "key", shop, "--save", key)
        base = self.config.settings.base
        self._command(children, "service", "serve", "--base", base, "--port", "0", "--with-parent")
        line = self._ready(children, "service", "ready: curl ", timeout_s=180)
        return line.split("ready: curl ")[1].split("/v1/copy")[0]

    def _call(self, url: str) -> None:
        """Call the service as tenants do, and as a tenant who tries another's adapter."""
        from openai import NotFoundError, OpenAI

        keys = {s: (self.home / "shops" / s / "api_key").read_text().strip() for s in self.shops}
        first, other = self.shops[0], self.shops[-1]
        answers = {}
        with httpx.Client(trust_env=False, timeout=300) as http:
            for shop in (first, other):
                client = OpenAI(base_url=f"{url}/v1", api_key=keys[shop])
                chat = client.chat.completions.create(
                    model="default",
                    messages=[{"role": "user", "content": "Say in one line what this shop sells."}],
                    max_tokens=24,
                    temperature=0,
                )
                reply = http.post(
                    f"{url}/v1/copy",
                    json=NOTEBOOK,
                    headers={"Authorization": f"Bearer {keys[shop]}"},
                )
                # A small model may write nothing but claims: the refusal is an answer too.
                body = reply.json()
                if reply.status_code != httpx.codes.UNPROCESSABLE_ENTITY:
                    reply.raise_for_status()
                refused = {"text": body.get("error", {}).get("message")}
                piece = body["copies"][0] if reply.is_success else refused
                answers[shop] = {
                    "chat": chat.choices[0].message.content,
                    "copy": piece["text"],
                    "explanation": piece.get("explanation"),
                    "version": chat.system_fingerprint,
                }
            if first != other:
                client = OpenAI(base_url=f"{url}/v1", api_key=keys[first])
                try:
                    client.completions.create(model=other, prompt="hello", max_tokens=1)
                except NotFoundError:
                    self._say(f"{first} asked for {other}'s adapter by name: 404, as it should be")
                else:
                    raise HandbillError(f"{first} was served {other}'s adapter")
        if first != other and answers[first]["version"] == answers[other]["version"]:
            raise HandbillError("two tenants were served the same adapter")
        self.outcome.served = answers

    # -- small things ------------------------------------------------------------------------

    @contextmanager
    def _stage(self, name: str) -> Iterator[None]:
        self.console.print(f"[bold]{name}[/bold]")
        started = time.monotonic()
        yield
        self.outcome.stages[name] = time.monotonic() - started
        self._say(f"done in {self.outcome.stages[name]:.0f} s")

    def _say(self, text: str) -> None:
        self.console.print(f"  {text}", markup=False, highlight=False)

    def _command(self, children: Children, name: str, *arguments: str) -> None:
        children.start(name, [*handbill_command(), *arguments], {"HANDBILL_HOME": str(self.home)})

    def _ready(self, children: Children, name: str, word: str, *, timeout_s: float) -> str:
        log = self.home / "logs" / f"{name}.log"

        def line() -> str:
            text = log.read_text(errors="replace") if log.is_file() else ""
            return next((line for line in reversed(text.splitlines()) if word in line), "")

        children.wait_for(lambda: bool(line()), f"{name} was ready", timeout_s=timeout_s)
        return line()

    def _json(self, *arguments: str, parse: bool = True) -> Any:
        import subprocess

        options = ["--json"] if parse else []
        done = subprocess.run(
            [*handbill_command(), *arguments, *options, "--home", str(self.home)],
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise HandbillError(f"handbill {' '.join(arguments[:2])}: {done.stderr.strip()[-400:]}")
        return json.loads(done.stdout) if parse else None


def handbill_command() -> list[str]:
    """The ``handbill`` command in this Python."""
    return [sys.executable, "-m", "handbill.cli"]


def demo_settings(
    base: str, *, layers: int, rounds: int, users: int, personal_steps: int, port: int
) -> ServerSettings:
    """The operator's settings of a demo: few rounds, the upper layers, loopback."""
    plain = ServerSettings()
    return replace(
        plain,
        base=base,
        port=port,
        adapter=AdapterSettings(layers=layers),
        recipe=replace(
            plain.recipe, rounds=rounds, expected_users=users, personal_steps=personal_steps
        ),
        min_reports=2,
    )


def _label(shop: str, *, cold: bool) -> str:
    return f"{shop}-cold" if cold else shop
