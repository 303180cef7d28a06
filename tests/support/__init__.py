"""What several tests need: worker processes, and a ledger that handlers write."""
