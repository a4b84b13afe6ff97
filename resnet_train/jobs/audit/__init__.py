"""Audit a data set: what is wrong with its files, its images and its labels."""

from resnet_train.jobs.audit.job import AuditOptions, audit, default_output

__all__ = ["AuditOptions", "audit", "default_output"]
