"""Serve GGUF language models on this machine, and keep them served.

Read ARCHITECTURE.md first. Imports run one way: cli, daemon, api, then runtime and observe, then
access, store, config, domain, errors.
"""
