"""SeqIO tasks of CommonsenseQA (CoS-E v1.11)."""

from tasks.registration import register

NAMES = register("cqa")
