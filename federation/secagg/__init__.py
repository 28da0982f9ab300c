"""Secure aggregation, protocol SA-1: the server learns the sum of the merchants' vectors and nothing else.

Bonawitz et al. 2017 (doi:10.1145/3133956.3133982, Fig. 4, the malicious variant), with the
differences and their reasons in ``docs/decisions/0011-secure-aggregation.md``. Bytes in, bytes
out: nothing here knows a network, a disk or Flower. Start with
:class:`~handbill.federation.secagg.participant.Participant` (a merchant's side) and
:class:`~handbill.federation.secagg.aggregator.Aggregator` (the server's); one session goes

1. advertise: a merchant makes keys and signs the public halves (may be long before);
2. share: it sees all adverts and sends everybody a share of its secrets, encrypted;
3. mask: it sends its vector under masks that cancel in the sum;
4. agree: it signs the set of those whose vectors arrived;
5. unmask: it sees everybody's signature on that one set and gives the shares that open its sum.
"""
