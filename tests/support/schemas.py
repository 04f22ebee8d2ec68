"""The schemas of SARIF, GitHub workflows and pre-commit, read from the package that ships them."""

import json
import pickle
import sqlite3
from importlib.metadata import distribution
from pathlib import Path

import jsonschema

SCHEMA_STORE = "https://json.schemastore.org/"


def schema(name):
    """A schema as the package schemastore holds it: read from its file, so that nothing expires or is fetched."""
    store = Path(str(distribution("schemastore").locate_file("schemastore/cache.sqlite")))
    connection = sqlite3.connect(f"{store.resolve().as_uri()}?immutable=1", uri=True)
    try:
        rows = connection.execute("SELECT value FROM responses WHERE instr(value, CAST(? AS BLOB))", (name,)).fetchall()
    finally:
        connection.close()
    responses = [pickle.loads(value) for (value,) in rows]
    (text,) = (response["_content"] for response in responses if response["url"] == SCHEMA_STORE + name)
    return json.loads(text)


SARIF = jsonschema.Draft7Validator(schema("sarif-2.1.0.json"))
