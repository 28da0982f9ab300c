"""What writes copy and checks it: base models, prompts, adapters, signed artifacts, claims, measures.

Start reading at :mod:`handbill.generator.prompts` (what is asked), then
:mod:`handbill.generator.adapters` (what is trained) and
:mod:`handbill.generator.artifacts` (how it is stored, signed and checked). How good copy is:
:mod:`handbill.generator.copy_table`, :mod:`handbill.generator.ratings`, :mod:`handbill.generator.rerank`. What is trained
from nothing: :mod:`handbill.generator.generators`.
"""
