"""handbill: private, federated marketing copy.

Start reading at ``docs/architecture.md``; it follows one row of a shopper's data and one
request for copy through the rooms.
"""

__version__ = "0.1.0"
