"""Every dialect that the simulator speaks, each on a topic of its own, through real workers into every store."""

from pathlib import Path

from app import check
from app.fleet import speakable
from tests.lab.apps import unique
from tests.lab.pipeline import ROOT, Pipeline
from tests.lab.stores import StoreLab

#: A fleet says a fortieth of its payloads so that they must be refused.
_BAD = 0.025
_EACH = 600


async def test_every_dialect_is_stored_or_refused(kafka_servers: str, labs: list[StoreLab], tmp_path: Path) -> None:
    """Several topics at once, each with its dialect: each good reading is stored once, each bad one is a letter."""
    name = unique("d")
    topics = {dialect: f"{name}-{dialect}" for dialect in speakable()}
    stores = {variable: value for lab in labs for variable, value in lab.env.items()}
    places = {
        **stores,
        "STORES": ",".join(lab.name for lab in labs),
        "KAFKA_RAW_TOPICS": ",".join(f"{topic}:{dialect}" for dialect, topic in topics.items()),
        "IOTFLOW_REGISTRY": str(ROOT / "deploy" / "registry.example.yaml"),
    }
    async with Pipeline(kafka_servers, places, tmp_path) as p:
        await p.started_all()
        fleets = [text for dialect in topics for text in ("--fleet", f"{dialect}:7")]
        sent = await p.run(
            "simulate", "--count", str(_EACH * len(topics)), "--rate", "0", "--bad", str(_BAD),
            "--ledger", str(p.ledger()), "--json", *fleets,
        )  # fmt: skip
        await p.settled()
        report = await check.compare(p.settings, p.ledger())

        assert {fleet["dialect"]: fleet["topic"] for fleet in sent["fleets"]} == topics
        assert all(fleet["good"] > _EACH / 2 and fleet["bad"] for fleet in sent["fleets"])
        assert report.ok, report
        assert {sent["good"]} == {found.expected for found in report.stores.values()}
        assert report.letters.expected == sent["bad"]
