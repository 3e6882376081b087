-- What happened to every message, from the events of the ledger groups.

-- How far each group's events have been written: moved in the transaction that writes them.
CREATE TABLE cursors (
    group_id INTEGER PRIMARY KEY,
    through INTEGER NOT NULL
);

-- Ids begin with the time, so that newer messages sort behind older ones.
CREATE TABLE messages (
    id BLOB PRIMARY KEY,
    accepted_at INTEGER NOT NULL,
    tenant INTEGER NOT NULL,
    sender TEXT NOT NULL,
    subject TEXT NOT NULL,
    origin TEXT NOT NULL,
    size INTEGER NOT NULL,
    recipients INTEGER NOT NULL
) WITHOUT ROWID;

-- The current state of each recipient's delivery. There is no index by address: it would cost more than all the rest
-- together, and a search walks back from the newest anyway.
CREATE TABLE deliveries (
    message BLOB NOT NULL,
    recipient INTEGER NOT NULL,
    address TEXT NOT NULL COLLATE NOCASE,
    state TEXT NOT NULL,
    attempts INTEGER NOT NULL,
    changed_at INTEGER NOT NULL,
    due_at INTEGER,
    response TEXT NOT NULL,
    PRIMARY KEY (message, recipient)
) WITHOUT ROWID;

-- What happened to a delivery after it was accepted.
CREATE TABLE timeline (
    message BLOB NOT NULL,
    recipient INTEGER NOT NULL,
    sequence INTEGER NOT NULL,
    at INTEGER NOT NULL,
    kind TEXT NOT NULL,
    new_state TEXT,
    due_at INTEGER,
    attempt INTEGER,
    source INTEGER,
    node INTEGER,
    outcome TEXT,
    class TEXT,
    code INTEGER,
    response TEXT,
    remote TEXT,
    tls TEXT,
    started_at INTEGER,
    ended_at INTEGER,
    PRIMARY KEY (message, recipient, sequence)
) WITHOUT ROWID;

-- How many recipients had which outcome, per minute since the epoch.
CREATE TABLE minutes (
    minute INTEGER NOT NULL,
    tenant INTEGER NOT NULL,
    outcome TEXT NOT NULL,
    count INTEGER NOT NULL,
    PRIMARY KEY (minute, tenant, outcome)
) WITHOUT ROWID;

-- Events missing from this database: the queue no longer had them.
CREATE TABLE gaps (
    group_id INTEGER NOT NULL,
    first INTEGER NOT NULL,
    through INTEGER NOT NULL,
    noticed_at INTEGER NOT NULL,
    PRIMARY KEY (group_id, first)
) WITHOUT ROWID;
