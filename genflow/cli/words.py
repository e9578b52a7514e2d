"""Words that a command does not declare: flags of other tools, recipe keys without `--set`, and groups without `ls`."""

import typer
from typer.core import TyperCommand, TyperGroup

from genflow.errors import UsageError


class Listing(TyperGroup):
    """A group that lists if no command is named: `genflow runs --sort fd` is `genflow runs ls --sort fd`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        named = args and (not args[0].startswith("-") or args[0] in self.get_help_option_names(ctx))
        return super().parse_args(ctx, list(args) if named else ["ls", *args])


class Command(TyperCommand):
    """A command that understands `--batch_size 64` as `--set train.batch=64`, and `--num_steps 8` as `--steps 8`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        flags = {flag for param in self.params for flag in (*param.opts, *param.secondary_opts)}
        flags |= set(self.get_help_option_names(ctx))
        return super().parse_args(ctx, translate(str(self.name or ctx.info_name), flags, list(args)))

SWITCHED = ("true", "false")  # what may follow a switch as its value


def translate(command: str, flags: set[str], args: list[str]) -> list[str]:
    """The arguments of a command with the words that it does not declare replaced by flags, or by `--set`.

    Args:
        command: its name.
        flags: that it declares.
        args: as typed; those after `--` stay as they are.
    """
    out: list[str] = []
    while args:
        arg = args.pop(0)
        word, equals, value = arg.partition("=")
        if arg == "--":
            return [*out, arg, *args]
        if not arg.startswith("--") or word in flags:
            out.append(arg)
            continue
        from genflow.commands.vocabulary import flag_of, key_of  # only if a flag is unknown: `--help` stays fast

        if flag := flag_of(command, word[2:], flags):
            out += [flag, value] if equals else [flag]
        elif "--set" in flags and (key := key_of(command, word[2:])):
            if not equals:
                is_value = args and not args[0].startswith("--") and (not _is_switch(key) or args[0] in SWITCHED)
                value = args.pop(0) if is_value else _alone(key, word)
            out += ["--set", f"{key}={value}"]
        else:
            out.append(arg)
    return out


def _alone(key: str, word: str) -> str:
    """The value of a key whose flag has none: true for a switch.

    Raises:
        UsageError: the key needs a value.
    """
    if _is_switch(key):
        return "true"
    raise UsageError(f"option {word} needs a value: it sets {key}", f"genflow recipe {key}")


def _is_switch(key: str) -> bool:
    """Whether a key is on or off."""
    from genflow.recipe.schema import SECTIONS

    section, _, name = key.partition(".")
    return section in SECTIONS and SECTIONS[section].model_fields[name].annotation is bool
