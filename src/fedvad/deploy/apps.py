"""The Flower App: what Flower's own processes import. Imports Flower, so nothing else does."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedvad.deploy.settings import SITE_VARIABLE
from fedvad.errors import ConfigError, PayloadError
from fedvad.federation.mailboxes.flower.messages import Instruction, Reply, from_records, to_records

logging.basicConfig(
    level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr
)
# Flower has handlers of its own, and would say everything twice
logging.getLogger("flwr").propagate = False
logging.getLogger("httpx").setLevel(logging.WARNING)
_PULL_SECONDS = 600.0
client = ClientApp()
server = ServerApp()


@client.train()
def _site(message: Message, context: Context) -> Message:
    from fedvad.deploy.settings import read_site
    from fedvad.deploy.site import answer

    folder = context.node_config.get("folder") or os.environ.get(SITE_VARIABLE)
    if not folder:
        raise ConfigError(
            "this SuperNode was not started by `fedvad site`: give it --node-config "
            "'folder=\"FOLDER\"', where FOLDER holds a site.toml"
        )
    site = read_site(Path(str(folder)))
    try:
        instruction = from_records(message.content, Instruction)
    except PayloadError as error:
        reply = Reply(site.name, refusal=str(error))
    else:
        assert isinstance(instruction, Instruction)
        reply = answer(site, instruction)
    return Message(to_records(reply), reply_to=message)


@server.main()
def _federation(grid: Grid, context: Context) -> None:
    from fedvad.deploy.guard import bound_pulls
    from fedvad.deploy.server import federate, site_keys
    from fedvad.deploy.settings import SERVER_VARIABLE, read_running
    from fedvad.federation.mailboxes.flower.links import FlowerLinks

    folder = os.environ.get(SERVER_VARIABLE)
    if not folder:
        raise ConfigError(
            f"this SuperLink was not started by `fedvad server`: set {SERVER_VARIABLE}"
        )
    settings = read_running(Path(folder))
    keys = None if settings.insecure else site_keys(settings)
    bound_pulls(min(_PULL_SECONDS, settings.deadline))
    federate(settings, str(context.run_config["name"]), FlowerLinks(grid, keys))
