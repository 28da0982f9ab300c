"""What copy may not say: claims the law bars, personal data, facts nobody gave, others' brands.

Start reading at :mod:`handbill.generator.claims.checker`. Rules are data (``zh.toml``, ``en.toml``);
:mod:`~handbill.generator.claims.folding` undoes disguises before they are matched.
"""
