"""SeqIO tasks of ANLI round 1."""

from tasks.registration import register

NAMES = register("anli")
