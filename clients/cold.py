"""A round without the warm trainer: everything is loaded for one message."""

from pathlib import Path

from handbill.clients.merchant import SERVER_KEY
from handbill.clients.trainer import Trainer
from handbill.federation.messages import Instruction, Signed, open_signed
from handbill.generator.artifacts import load_public_key


def handle(home: Path, message: bytes) -> bytes:
    """Load data and model, then answer one instruction."""
    trainer = Trainer(home)
    key = load_public_key(home / SERVER_KEY)
    asked, _ = open_signed(Signed.from_bytes(message), key, Instruction)
    trainer.study(asked.spec)
    return trainer.handle(message)
