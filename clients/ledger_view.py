"""What ``handbill client ledger`` shows: the ledger, and what the server knows of it."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from handbill.clients.journal import Journal
from handbill.clients.merchant import LEDGER_FILE, Policy
from handbill.federation.messages import Receipt
from handbill.privacy.ledger import Ledger
from handbill.privacy.statement import LedgerStatement


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerView:
    """A shop's ledger at one moment.

    Attributes:
        statement: What is spent and what is left.
        rows: Rows of the ledger, notes among them.
        receipt: What the server last said that it committed, None if nothing yet.
        receipted: The row that the receipt is for; 0 if there is none in this ledger.
        newest: Whether the ledger holds the last head that was given out from this machine.
    """

    shop: str
    statement: LedgerStatement
    rows: int = 0
    receipt: Receipt | None = None
    receipted: int = 0
    newest: bool = True

    @classmethod
    def of(cls, home: Path) -> "LedgerView":
        """Look at the ledger in a merchant's home, also while a trainer works.

        Raises:
            LedgerError: The ledger is damaged.
        """
        policy, journal = Policy.load(home), Journal(home / "journal")
        limit, delta = policy.epsilon_limit, policy.delta
        head, receipt = journal.head(), journal.receipt()
        if not (home / LEDGER_FILE).is_file() and not head:
            unused = LedgerStatement(epsilon_spent=0.0, epsilon_limit=limit, delta=delta)
            return cls(shop=home.name, statement=unused)
        with Ledger(home / LEDGER_FILE, epsilon_limit=limit, delta=delta, read_only=True) as ledger:
            row = ledger.find(receipt.head) if receipt else None
            return cls(
                shop=home.name,
                statement=ledger.statement(),
                rows=len(ledger.verify()),
                receipt=receipt,
                receipted=row.seq if row else 0,
                newest=not head or ledger.find(head) is not None,
            )

    def to_dict(self) -> dict[str, Any]:
        """Return the machine-readable form, fit for JSON."""
        receipt = asdict(self.receipt) | {"row": self.receipted} if self.receipt else None
        about = {"rows": self.rows, "newest": self.newest, "receipt": receipt}
        return {"shop": self.shop, **self.statement.to_dict(), **about}

    def shown(self) -> RenderableType:
        """Return the form for a terminal."""
        parts: list[RenderableType] = [Text(f"{self.shop}: {self.statement.in_words()}")]
        if self.statement.spending:
            parts += ["", self._table(), ""]
            parts.append(Text(self._receipt_in_words()))
        if not self.newest:
            warning = "this is an older copy: it lacks the last head given out; training refuses it"
            parts.append(Text(f"warning: {warning}", style="yellow"))
        return Group(*parts)

    def _table(self) -> Table:
        table = Table("run", "stage", box=None, pad_edge=False)
        for name in ("rounds", "repeated", "steps", "noise", "sampling"):
            table.add_column(name, justify="right")
        for part in self.statement.spending:
            numbers = (part.rounds, part.repeated, part.steps)
            noise, rate = f"{part.noise_multiplier:.3f}", f"{part.sampling_rate:.3g}"
            table.add_row(part.run, part.stage, *map(str, numbers), noise, rate)
        return table

    def _receipt_in_words(self) -> str:
        if self.receipt is None:
            return "The server has sent no receipt yet: it does with the next instruction."
        after = f"{self.receipt.stage} round {self.receipt.round} of run {self.receipt.run}"
        if not self.receipted:
            return f"The server's receipt, after {after}, is for a row that is not here."
        return f"Receipted by the server up to row {self.receipted} of {self.rows}, after {after}."
