"""Read the configuration once into one frozen tree, and refuse what is wrong in it."""

from appliance.config.load import effective, is_loopback, load, parse_override, toml_value
from appliance.config.tree import (
    SECTIONS,
    Config,
    Engine,
    Grpc,
    Limits,
    Model,
    Rest,
    Section,
    Server,
    Store,
    describe,
)

__all__ = [
    "SECTIONS",
    "Config",
    "Engine",
    "Grpc",
    "Limits",
    "Model",
    "Rest",
    "Section",
    "Server",
    "Store",
    "describe",
    "effective",
    "is_loopback",
    "load",
    "parse_override",
    "toml_value",
]
