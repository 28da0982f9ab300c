"""The generators that came before language models, trained from nothing on the same pairs.

Start reading at :mod:`handbill.generator.classic.seq2seq`; the others are that network with one thing more: a latent
variable (:mod:`~handbill.generator.classic.cvae`), a discriminator (:mod:`~handbill.generator.classic.gan`).
"""
