"""Read the configuration once into one frozen tree, and refuse what is wrong in it."""

from appliance.config.adapters import Adapter
from appliance.config.clients import Access, Client
from appliance.config.deployments import Deployments
from appliance.config.downloads import Bandwidth, Downloads
from appliance.config.faces import Grpc, Rest
from appliance.config.hosting import Hosting
from appliance.config.hub import Hub
from appliance.config.link import Link
from appliance.config.load import (
    effective,
    is_loopback,
    load,
    parse_override,
    section_text,
    toml_value,
)
from appliance.config.refresh import Refresh
from appliance.config.scheduling import Scheduling
from appliance.config.section import Section
from appliance.config.store import Store
from appliance.config.tree import (
    REPEATED,
    SECTIONS,
    Config,
    Engine,
    Limits,
    Model,
    Server,
    describe,
)
from appliance.config.versions import Versions

__all__ = [
    "REPEATED",
    "SECTIONS",
    "Access",
    "Adapter",
    "Bandwidth",
    "Client",
    "Config",
    "Deployments",
    "Downloads",
    "Engine",
    "Grpc",
    "Hosting",
    "Hub",
    "Limits",
    "Link",
    "Model",
    "Refresh",
    "Rest",
    "Scheduling",
    "Section",
    "Server",
    "Store",
    "Versions",
    "describe",
    "effective",
    "is_loopback",
    "load",
    "parse_override",
    "section_text",
    "toml_value",
]
