"""SeqIO tasks of the embedded demo, whose only labels are gold and whose vocabulary is its own."""

from tasks.registration import register

NAMES = register("demo", vocabulary="demo", labels=("gold",))
