"""What is measured: one function for each suite, one file for each family of them."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.harness import Session
from benchmarks.suites import arrivals, cancelling, chats, pressure, profile, schemas, throughput

# In this order; each keeps its samples in the session.
SUITES: dict[str, Callable[[Session], None]] = {
    "throughput": throughput.throughput,
    "tiny": throughput.tiny,
    "first-token": arrivals.first_token,
    "gap": arrivals.gap,
    "shared-prefix": arrivals.shared_prefix,
    "busy": pressure.busy,
    "cells": pressure.cells,
    "fairness": pressure.fairness,
    "cancel": cancelling.cancel,
    "schema": schemas.schema,
    "chats": chats.chats,
    "profile": profile.profile,
}
