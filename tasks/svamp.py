"""SeqIO tasks of SVAMP."""

from tasks.registration import register

NAMES = register("svamp")
