"""The round: what is said, how replies are added up, and over what they travel.

Start reading at :mod:`handbill.federation.rounds`; a round is defined there once, and runs over
any :class:`~handbill.federation.transport.Transport`: Flower's Grid between machines, or plain
calls within one process.
"""
