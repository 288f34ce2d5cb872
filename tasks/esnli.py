"""SeqIO tasks of e-SNLI."""

from tasks.registration import register

NAMES = register("esnli")
