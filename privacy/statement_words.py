"""What the statement page says that no number changes: the promise, its edges, and the words."""

from typing import Final

UNIT: Final = (
    "One shopper of one merchant, with all of that shopper's rows: orders, reviews, searches. It "
    "does not matter how many they are. A shopper is one account of the shop; a household that "
    "shares an account counts as one shopper."
)

WHOM: Final = (
    "From everybody outside the shop: the operator of the server, the other merchants, whoever is "
    "served by a model and whoever gets hold of one, alone or all together, with any computer and "
    "anything else they know. The noise is added on the shop's own machine before anything is sent, "
    "so nobody outside has to be trusted. The shop itself has its data and is not meant."
)

PROMISE: Final = (
    "In plain words: whatever can be concluded from what this shop sent could also have been "
    "concluded if that shopper had never been there, and the odds of that differ by no more than the "
    "factor below. It does not promise that nothing about a person can be guessed: what is true of "
    "people in general can be learnt, and is meant to be."
)

STEP: Final = (
    "DP-SGD with the user as the unit (Abadi et al. 2016, arXiv:1607.00133; McMahan et al. 2018, "
    "arXiv:1710.06963). In each step every shopper is drawn with the sampling rate, independently "
    "(Poisson sampling); the mean gradient of each drawn shopper is cut to length {norm} (the "
    "clipping norm; where the recipe lets it move, this is where it starts, and the noise moves "
    "with it); the gradients are added up, and Gaussian noise is added whose standard deviation is "
    "the noise multiplier times the clipping norm. Only that noisy sum is used."
)

RANDOMNESS: Final = (
    "Noise and sampling come from a cryptographic generator under a fresh key of the operating "
    "system, which is never stored: noise that can be drawn again can be taken off again."
)

HAZARDS: Final = (
    "The proof is about real numbers, a computer has floating point ones. Each value is half the "
    "sum of four draws and is rounded to a grid afterwards, which closes the known attacks; it is "
    "no proof.",
    "When a report arrives is seen by the server, and a step with more shoppers takes longer. The "
    "bound does not cover time.",
    "The statement is about what training sends. Rows that leave the shop on another way, a machine "
    "that is broken into, or copy that a shop writes from a shopper's data by hand are not in it.",
    "The figure is as right as the ledger. It is a chain of hashes on the shop's own disk, and the "
    "server remembers its last link; a shop that forges its own ledger deceives its own shoppers.",
    "Somebody with several accounts is protected less than the figure says: see above.",
)

CHECK_YOURSELF: Final = (
    "Everything needed is on this page: the steps (noise multiplier, sampling rate, number) and "
    "delta. Any accountant for the Poisson-sampled Gaussian mechanism under add-or-remove-one "
    "adjacency gives the figure. These commands ask two, of independent libraries:"
)

GLOSSARY: Final = (
    ("accountant", "The arithmetic that turns steps into epsilon."),
    (
        "adapter",
        "The small set of weights that is trained and sent; the base model is not changed.",
    ),
    (
        "adjacency",
        "What counts as one person's difference. Add-remove: a shopper is there or is not.",
    ),
    ("clipping norm", "The most that one shopper's gradient may weigh in a step."),
    ("composition", "What several steps, rounds or runs cost together."),
    (
        "delta",
        "A small chance for which the bound by epsilon is not promised; less than one divided by "
        "the number of shoppers.",
    ),
    (
        "epsilon",
        "The bound: the odds of anything that can be seen change by a factor of at most e^epsilon "
        "(e = 2.718...) when one shopper comes or goes. 0 would be no influence at all.",
    ),
    ("gradient", "The direction in which a shopper's rows would move the weights."),
    (
        "ledger",
        "The shop's own record of every private step, written before the step is taken; it stops "
        "training at the limit.",
    ),
    ("manifest", "The signed description of a trained model; it carries this statement."),
    ("noise multiplier", "Standard deviation of the noise, divided by the clipping norm."),
    ("PRV, PLD, RDP", "Three methods of an accountant; the first two are tight, the third looser."),
    ("round", "One exchange between server and shops, of one or more private steps."),
    ("sampling rate", "The chance of each shopper to be in one step."),
    ("unit of privacy", "Whose presence is hidden: here one shopper, not one row and not a shop."),
)
