"""Several names as one, from which each can be had again."""


def joined(*parts: str) -> str:
    """The parts with `|` between them; in a part `%` is `%25` and `|` is `%7C`."""
    plain = "|".join(parts)
    if "%" not in plain and plain.count("|") == len(parts) - 1:
        return plain
    return "|".join([part.replace("%", "%25").replace("|", "%7C") for part in parts])


def parted(name: str) -> list[str]:
    """The parts of what `joined` made."""
    return [part.replace("%7C", "|").replace("%25", "%") for part in name.split("|")]
