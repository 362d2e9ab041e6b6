"""What Pensieve's own search finds in MEMOS_DATABASE_PATH. Runs in Pensieve's interpreter: search.py WORD …"""

from __future__ import annotations

import json
import sys

from memos.config import settings
from memos.databases.initializers import create_db_initializer
from memos.search import create_search_provider
from sqlalchemy.orm import Session

engine, _initializer = create_db_initializer(settings)
provider = create_search_provider(settings.database_url)
with Session(engine) as session:
    found = {word: sorted(map(int, provider.full_text_search(word, session, 5000))) for word in sys.argv[1:]}
print(json.dumps(found))
