"""What errors of the libraries say to a user."""

import importlib
import re

from jsonargparse import ArgumentParser
from torch.multiprocessing.spawn import ProcessExitedException, ProcessRaisedException

from sfda.errors import UserError, did_you_mean, last_line

WORKER_DIED = r"^DataLoader worker \(pid|shared memory|</torch_"
"""What torch says of a loader's worker that was killed, or of shared memory that is full."""

PEER_DIED = r"Connection closed by peer|Connection reset by peer|gloo/transport"
"""What gloo says where another process of the group is gone."""


def user_error_behind(error: Exception) -> UserError | None:
    """What a user can mend about an error of the libraries; None where it is a fault of the program.

    A `UserError` of a class that jsonargparse instantiated or of a forked rank, or the death of a process that reads
    images or of a rank.
    """
    if isinstance(error, ProcessRaisedException):
        said = re.split(r"^sfda\.[\w.]+: ", str(error), flags=re.MULTILINE)[1:]
        return UserError(said[-1].strip()) if said else _peer_error(error)
    if isinstance(error, ProcessExitedException):
        died = f"by signal {error.signal_name}" if error.signal_name else f"with status {error.exit_code}"
        return UserError(
            f"process {error.error_index} of this run has died ({died}), probably of too little memory: lower "
            "--data.init_args.batch_size or --trainer.devices"
        )
    if isinstance(error, RuntimeError):
        if (peer_error := _peer_error(error)) is not None:
            return peer_error
        if re.search(WORKER_DIED, str(error)) is None:
            return None
        return UserError(
            f"a process that reads images has died, probably of too little memory ({error}): lower "
            "--data.init_args.num_workers (0 starts none), or give more shared memory (`docker run --shm-size 8g`)"
        )
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, UserError):
        seen = seen.__cause__ or seen.__context__
    return seen


def _peer_error(error: Exception) -> UserError | None:
    if re.search(PEER_DIED, str(error)) is None:
        return None
    return UserError(f"another process of this run has ended, and its output says why ({last_line(error)})")


def shorten(message: str) -> str:
    """The message of jsonargparse without the types that it tried: what a user can act on."""
    noise = ("Does not validate", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>", "Given value type:")
    internal = ("NestedArg(", "Namespace(")
    lines = [line.strip() for line in message.splitlines() if not any(word in line for word in internal)]
    kept = [line.removeprefix("- ") for line in lines if line and not line.startswith(noise)]
    return _with_suggestion(" ".join(kept))


def _with_suggestion(message: str) -> str:
    """What an unknown option of a class may have been meant to be, and where all of them are listed."""
    found = re.search(r'"(model|data)".*class_path \'([\w.]+)\'.*Option \'(\w+)\' is not accepted', message)
    if found is None:
        return message
    kind, class_path, option = found.groups()
    module, _, name = class_path.rpartition(".")
    parser = ArgumentParser()
    parser.add_class_arguments(getattr(importlib.import_module(module), name), "of")
    hint = did_you_mean(option, [action.dest.removeprefix("of.") for action in parser._actions])
    return f"{message}{hint or '.'} `sfda fit --{kind}.help {name}` lists all"
