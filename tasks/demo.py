"""SeqIO tasks of the embedded demo, which has gold labels alone and its own vocabulary."""

from tasks.registration import register

NAMES = register("demo", vocabulary="demo", labels=("gold",))
