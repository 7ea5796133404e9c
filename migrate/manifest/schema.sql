-- The manifest: what was found, what came, where it lies, and how that is known.
-- Times are integers: milliseconds since 1970-01-01T00:00:00Z. Hashes are 32-byte BLOBs. UIDs are text.
-- A comment behind a column is that column's documentation; manifests/README.md is made from it.

-- What this manifest belongs to: identity of the source and the destination, format, creation.
CREATE TABLE meta(
  key TEXT PRIMARY KEY,              -- schema, migration, source, destination, created_at, created_by
  value TEXT NOT NULL                -- its value
) STRICT, WITHOUT ROWID;

-- One row for each command that took the manifest's lock.
CREATE TABLE run(
  id INTEGER PRIMARY KEY,            -- counts up; stands in events
  verb TEXT NOT NULL,                -- the command
  operator TEXT NOT NULL,            -- who ran it ([migration] operator)
  host TEXT NOT NULL,                -- machine
  pid INTEGER NOT NULL,              -- process
  version TEXT NOT NULL,             -- of pacs-migrate
  sqlite_version TEXT NOT NULL,      -- of SQLite
  config_sha256 TEXT NOT NULL,       -- hex SHA-256 of migrate.toml as it was
  started_at INTEGER NOT NULL,       -- time
  ended_at INTEGER,                  -- time; NULL: killed, or still running
  exit_code INTEGER                  -- how it ended
) STRICT;

-- One C-FIND question at STUDY level, a part of a sweep.
CREATE TABLE window(
  id INTEGER PRIMARY KEY,            -- named w<id> in reports
  sweep INTEGER NOT NULL,            -- number of the sweep that asked it
  axis TEXT NOT NULL CHECK(axis IN ('date', 'all', 'patient', 'accession', 'modality', 'list')), -- date: by StudyDate; all: without a key; patient, accession: by prefixes; modality; list: UIDs or numbers of a list
  lo TEXT,                           -- first StudyDate, YYYYMMDD
  hi TEXT,                           -- last StudyDate, YYYYMMDD
  time_lo TEXT,                      -- first StudyTime within that one day
  time_hi TEXT,                      -- last StudyTime
  modality TEXT,                     -- ModalitiesInStudy
  patient TEXT,                      -- first characters of PatientID, eight at most; in no report. %: the list of all patients, %3/16: a share of them, one by one
  accession TEXT,                    -- first characters of AccessionNumber, eight at most; in no report
  parent INTEGER REFERENCES window,  -- the window that this is a part of
  part_by TEXT CHECK(part_by IN ('date', 'time', 'modality', 'patient', 'accession')), -- the key by which the parent was cut
  purpose TEXT NOT NULL DEFAULT 'cover' CHECK(purpose IN ('cover', 'check', 'again', 'look')), -- check, again: only compared with the parent; look: never blocks
  state INTEGER NOT NULL DEFAULT 0 CHECK(state BETWEEN 0 AND 4), -- 0 planned, 1 answered, 2 failed, 3 split, 4 dropped: the PACS ignores its key
  row_count INTEGER,                 -- rows in the answer; of its largest C-FIND where it took several
  study_count INTEGER,               -- different studies in it; of its largest C-FIND
  outside_count INTEGER NOT NULL DEFAULT 0, -- studies that do not fit the question
  attempts INTEGER NOT NULL DEFAULT 0, -- times asked in vain
  not_before INTEGER NOT NULL DEFAULT 0, -- time of the next try
  error TEXT,                        -- error class of the last failure
  detail TEXT,                       -- sentence about it
  suspicion TEXT,                    -- what is odd about the answer
  blocks INTEGER NOT NULL DEFAULT 0 CHECK(blocks IN (0, 1)), -- 1: its completeness cannot be shown
  accepted_by TEXT,                  -- who accepted that
  accepted_reason TEXT,              -- and why
  answered_at INTEGER                -- time
) STRICT;
CREATE INDEX window_queue ON window(sweep, state);
CREATE INDEX window_parts ON window(parent);

-- Which window of the newest sweep showed which study; emptied when the next sweep begins.
CREATE TABLE sighting(
  window_id INTEGER NOT NULL REFERENCES window, -- the question
  study_id INTEGER NOT NULL REFERENCES study, -- the study in its answer
  outside INTEGER NOT NULL DEFAULT 0 CHECK(outside IN (0, 1)), -- 1: its values do not fit the question
  PRIMARY KEY(window_id, study_id)
) STRICT, WITHOUT ROWID;

-- Habits of this PACS, as found by probing and sweeping.
CREATE TABLE habit(
  name TEXT PRIMARY KEY,             -- cap, ignores_date, ff01 ...
  value TEXT NOT NULL,               -- what was found
  detail TEXT NOT NULL DEFAULT '',   -- sentence about it
  learned_at INTEGER NOT NULL        -- time
) STRICT, WITHOUT ROWID;

-- One row for each Study Instance UID that the PACS has ever shown or sent.
CREATE TABLE study(
  id INTEGER PRIMARY KEY,            -- internal
  uid TEXT NOT NULL UNIQUE,          -- Study Instance UID
  state INTEGER NOT NULL DEFAULT 0,  -- 0 found, 1 planned, 2 retrieved, 3 migrated, 4 excluded, 5 parked, 6 accepted
  date TEXT,                         -- StudyDate as the PACS gives it; NULL: none
  modalities TEXT NOT NULL DEFAULT '', -- ModalitiesInStudy, joined by backslashes
  claimed_instances INTEGER,         -- NumberOfStudyRelatedInstances: a claim
  claimed_by_series INTEGER,         -- sum of NumberOfSeriesRelatedInstances: a claim
  time TEXT,                         -- StudyTime as the PACS gives it; NULL: none
  axes INTEGER NOT NULL DEFAULT 0,   -- how it was ever found, added up: 1 by date, 2 without a key, 4 by PatientID, 8 by AccessionNumber, 16 by modality, 32 by a list
  listed_instances INTEGER,          -- IMAGE rows of the last answer: what counts
  retrieve_ended INTEGER NOT NULL DEFAULT 0, -- 1: asked for as a whole, all that came is durable, and nothing tells that more should have come
  confirmed INTEGER NOT NULL DEFAULT 0, -- 1: asked once more at IMAGE level after everything was proven
  attempts INTEGER NOT NULL DEFAULT 0, -- failed attempts in this state
  not_before INTEGER NOT NULL DEFAULT 0, -- time of the next try
  stage TEXT,                        -- the stage that failed last; 'person': only a person can decide
  error TEXT,                        -- error class of the last failure
  detail TEXT,                       -- sentence about it
  found_sweep INTEGER,               -- first sweep that showed it; NULL: it came without being listed
  seen_sweep INTEGER,                -- last sweep that showed it
  found_event INTEGER NOT NULL,      -- the event 'studies found' that tells of it and of others found with it; none is added without one
  found_at INTEGER NOT NULL,         -- time
  changed_at INTEGER NOT NULL        -- time of the last change of state
) STRICT;
CREATE INDEX study_queue ON study(state) WHERE state < 3; -- a list of states here would be built anew for every row that is added
CREATE INDEX study_due ON study(not_before) WHERE not_before > 0;

-- One row for each series of a study, with the tallies that serve as work queues.
CREATE TABLE series(
  id INTEGER PRIMARY KEY,            -- internal
  study_id INTEGER NOT NULL REFERENCES study, -- its study
  uid TEXT NOT NULL,                 -- Series Instance UID
  modality TEXT NOT NULL DEFAULT '', -- Modality
  expected INTEGER NOT NULL DEFAULT 0, -- instances in that state, kept by triggers
  staged INTEGER NOT NULL DEFAULT 0, -- "
  stored INTEGER NOT NULL DEFAULT 0, -- "
  verified INTEGER NOT NULL DEFAULT 0, -- "
  waiting_bytes INTEGER NOT NULL DEFAULT 0, -- size of its staged and stored instances, kept by triggers
  verified_bytes INTEGER NOT NULL DEFAULT 0, -- size of its verified instances
  UNIQUE(study_id, uid)
) STRICT;
CREATE INDEX series_upload ON series(id) WHERE staged > 0;
CREATE INDEX series_verify ON series(id) WHERE stored > 0;

-- One row for each instance: listed by the PACS, or sent by it.
CREATE TABLE instance(
  series_id INTEGER NOT NULL REFERENCES series, -- its series
  sop_uid TEXT NOT NULL,             -- SOP Instance UID
  state INTEGER NOT NULL DEFAULT 0,  -- 0 expected, 1 staged, 2 stored, 3 verified
  listed INTEGER NOT NULL DEFAULT 1 CHECK(listed IN (0, 1)), -- 0: sent, but listed by no IMAGE answer
  conflict INTEGER NOT NULL DEFAULT 0 CHECK(conflict IN (0, 1)), -- 1: other bytes exist under the same three UIDs, here or at the destination
  beside INTEGER NOT NULL DEFAULT 0 CHECK(beside IN (0, 1)), -- 1: lies under its ~ name, because other bytes hold the plain key
  sop_class_id INTEGER REFERENCES uid_name, -- SOP Class UID
  transfer_syntax_id INTEGER REFERENCES uid_name, -- transfer syntax as received
  size_bytes INTEGER,                -- size of the Part 10 file
  dataset_sha256 BLOB CHECK(length(dataset_sha256) = 32), -- SHA-256 of the data set, the bytes that the PACS sent
  file_sha256 BLOB CHECK(length(file_sha256) = 32), -- SHA-256 of the Part 10 file, the bytes of the object
  crc64nvme INTEGER,                 -- CRC-64/NVME of the Part 10 file, as a signed 64-bit number
  pixel_crc64 INTEGER,               -- CRC-64/NVME from PixelData on; NULL: no pixel data
  notes TEXT,                        -- deviations seen by the structural scan
  staged_at INTEGER,                 -- time
  stored_at INTEGER,                 -- time
  verified_at INTEGER,               -- time
  proof INTEGER CHECK(proof BETWEEN 3 AND 4), -- 3 attested by the store, 4 read back
  version TEXT,                      -- object version, where the store gives one
  checksum TEXT,                     -- checksum reported by the store, only where it differs in kind from what was sent
  staged_seal INTEGER,               -- the seal over that step; NULL: not taken, or taken back
  stored_seal INTEGER,               -- "
  verified_seal INTEGER,             -- "
  PRIMARY KEY(series_id, sop_uid),
  CHECK((state > 0) = (staged_seal IS NOT NULL) AND (state > 1) = (stored_seal IS NOT NULL) AND (state = 3) = (verified_seal IS NOT NULL)),
  CHECK(state = 0 OR (size_bytes IS NOT NULL AND dataset_sha256 IS NOT NULL AND file_sha256 IS NOT NULL AND crc64nvme IS NOT NULL)),
  CHECK((state = 3) = (proof IS NOT NULL))
) STRICT, WITHOUT ROWID;
CREATE INDEX instance_odd ON instance(series_id, sop_uid, state) WHERE listed = 0 OR conflict = 1;

-- Further contents under three UIDs that an instance row already holds: kept beside the first at the destination.
CREATE TABLE copy(
  series_id INTEGER NOT NULL,        -- its series
  sop_uid TEXT NOT NULL,             -- SOP Instance UID
  dataset_sha256 BLOB NOT NULL CHECK(length(dataset_sha256) = 32), -- as in instance
  state INTEGER NOT NULL DEFAULT 1 CHECK(state BETWEEN 0 AND 3), -- as in instance; 0: its staged file was lost
  size_bytes INTEGER NOT NULL,       -- as in instance
  file_sha256 BLOB NOT NULL CHECK(length(file_sha256) = 32), -- as in instance
  crc64nvme INTEGER NOT NULL,        -- as in instance
  proof INTEGER,                     -- as in instance
  version TEXT,                      -- as in instance
  checksum TEXT,                     -- as in instance
  staged_at INTEGER,                 -- time
  stored_at INTEGER,                 -- time
  verified_at INTEGER,               -- time
  staged_seal INTEGER,               -- as in instance
  stored_seal INTEGER,               -- as in instance
  verified_seal INTEGER,             -- as in instance
  PRIMARY KEY(series_id, sop_uid, dataset_sha256),
  CHECK((state > 0) = (staged_seal IS NOT NULL) AND (state > 1) = (stored_seal IS NOT NULL) AND (state = 3) = (verified_seal IS NOT NULL))
) STRICT, WITHOUT ROWID;

-- Files that came but cannot be walked, or whose UIDs are not the command's: kept in staging under quarantine/.
CREATE TABLE quarantine(
  id INTEGER PRIMARY KEY,            -- internal
  study_uid TEXT,                    -- as said, where it is a UID
  series_uid TEXT,                   -- as said, where it is a UID
  sop_uid TEXT,                      -- as said, where it is a UID
  file TEXT NOT NULL UNIQUE,         -- name below quarantine/
  reason TEXT NOT NULL,              -- why
  claimed TEXT NOT NULL,             -- the three UIDs as said, JSON
  size_bytes INTEGER NOT NULL,       -- size of the file
  file_sha256 BLOB NOT NULL CHECK(length(file_sha256) = 32), -- its SHA-256
  received_at INTEGER NOT NULL,      -- time
  accepted_by TEXT,                  -- who accepted it
  accepted_reason TEXT               -- and why
) STRICT;
CREATE INDEX quarantine_study ON quarantine(study_uid);

-- Signed exceptions: exactly what was missing, in conflict or quarantined then; anything new reopens the study.
CREATE TABLE acceptance(
  id INTEGER PRIMARY KEY,            -- internal
  study_id INTEGER NOT NULL REFERENCES study, -- the study
  sop_uid TEXT,                      -- the one instance that was signed for; NULL: the study as it was
  covers TEXT NOT NULL,              -- JSON list of "kind:SOP Instance UID"
  code TEXT NOT NULL DEFAULT 'other', -- kind of reason: vanished-at-source, corrupt-at-source, duplicate ...
  reason TEXT NOT NULL,              -- why
  accepted_by TEXT NOT NULL,         -- who
  role TEXT NOT NULL DEFAULT '',     -- as what
  accepted_at INTEGER NOT NULL       -- time
) STRICT;
CREATE INDEX acceptance_study ON acceptance(study_id);

-- Signed exceptions that were taken back: from then on they cover nothing, and stay on record.
CREATE TABLE revocation(
  id INTEGER PRIMARY KEY,            -- internal
  acceptance_id INTEGER NOT NULL UNIQUE REFERENCES acceptance, -- what was taken back
  reason TEXT NOT NULL,              -- why
  revoked_by TEXT NOT NULL,          -- who
  role TEXT NOT NULL DEFAULT '',     -- as what
  revoked_at INTEGER NOT NULL        -- time
) STRICT;

-- SOP classes and transfer syntaxes, so that 100 million instances name them by a small number.
CREATE TABLE uid_name(
  id INTEGER PRIMARY KEY,            -- internal
  uid TEXT NOT NULL UNIQUE           -- the UID
) STRICT;

-- Names of the states, for the views.
CREATE TABLE state_name(
  entity TEXT NOT NULL,              -- study, instance or window
  state INTEGER NOT NULL,            -- number
  name TEXT NOT NULL,                -- word
  PRIMARY KEY(entity, state)
) STRICT, WITHOUT ROWID;
INSERT INTO state_name VALUES
  ('study', 0, 'found'), ('study', 1, 'planned'), ('study', 2, 'retrieved'), ('study', 3, 'migrated'),
  ('study', 4, 'excluded'), ('study', 5, 'parked'), ('study', 6, 'accepted'),
  ('instance', 0, 'expected'), ('instance', 1, 'staged'), ('instance', 2, 'stored'), ('instance', 3, 'verified'),
  ('window', 0, 'planned'), ('window', 1, 'answered'), ('window', 2, 'failed'), ('window', 3, 'split'), ('window', 4, 'dropped');

-- The law: the only steps that a study or an instance may take.
CREATE TABLE transition(
  entity TEXT NOT NULL,              -- study or instance
  from_state INTEGER NOT NULL,       -- number
  to_state INTEGER NOT NULL,         -- number
  PRIMARY KEY(entity, from_state, to_state)
) STRICT, WITHOUT ROWID;

-- The log. Rows are only ever added.
CREATE TABLE event(
  id INTEGER PRIMARY KEY AUTOINCREMENT, -- counts up, without gaps in a sound file
  at INTEGER NOT NULL DEFAULT (CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER)), -- time
  run_id INTEGER DEFAULT (NULL),     -- the run it happened in
  kind TEXT NOT NULL,                -- what happened
  study_uid TEXT,                    -- to which study
  series_uid TEXT,                   -- series
  sop_uid TEXT,                      -- instance
  detail TEXT                        -- more about it; never names, IDs or birth dates
) STRICT;
CREATE INDEX event_study ON event(study_uid) WHERE study_uid IS NOT NULL;
CREATE INDEX event_check ON event(id) WHERE kind IN ('destination verified', 'source compared');
CREATE INDEX event_staging ON event(id) WHERE kind IN ('staging opened', 'staging left');

-- The chain: one row for each commit that changed something. docs/proof.md has its format.
CREATE TABLE seal(
  id INTEGER PRIMARY KEY,            -- counts up from 1, without gaps
  run_id INTEGER,                    -- the run that sealed; NULL: the file was made or opened
  at INTEGER NOT NULL,               -- time
  last_event INTEGER NOT NULL,       -- the last event under this seal; the first is the one after the seal before
  steps INTEGER NOT NULL,            -- how many steps of instances and copies are under it
  sha256 BLOB NOT NULL CHECK(length(sha256) = 32) -- over the seal before, the events and the steps
) STRICT;

-- The Merkle root over what is proven of a study, computed at the end of a run; gone as soon as one of its instances moves.
CREATE TABLE study_root(
  study_id INTEGER PRIMARY KEY REFERENCES study, -- the study
  leaves INTEGER NOT NULL,           -- how many instances and copies of it are proven
  sha256 BLOB NOT NULL CHECK(length(sha256) = 32) -- the root; docs/proof.md has its format
) STRICT;

-- ---- the law ----------------------------------------------------------------------------------------------------------

CREATE TRIGGER study_law BEFORE UPDATE OF state ON study WHEN OLD.state <> NEW.state BEGIN
  SELECT RAISE(ABORT, 'law: no such step for a study')
    WHERE NOT EXISTS (SELECT 1 FROM transition WHERE entity = 'study' AND from_state = OLD.state AND to_state = NEW.state);
  SELECT RAISE(ABORT, 'law: a study is retrieved only when nothing of it is expected')
    WHERE NEW.state = 2 AND EXISTS (SELECT 1 FROM series WHERE study_id = NEW.id AND expected > 0);
  SELECT RAISE(ABORT, 'law: a study is migrated only when every instance is verified')
    WHERE NEW.state = 3 AND EXISTS (SELECT 1 FROM series WHERE study_id = NEW.id AND (expected > 0 OR staged > 0 OR stored > 0));
  SELECT RAISE(ABORT, 'law: a study with a copy that is not verified is not migrated')
    WHERE NEW.state = 3 AND EXISTS (SELECT 1 FROM copy JOIN series ON series.id = copy.series_id
                                    WHERE series.study_id = NEW.id AND copy.state < 3);
END;
CREATE TRIGGER study_begins BEFORE INSERT ON study WHEN NEW.state <> 0 BEGIN
  SELECT RAISE(ABORT, 'law: a study begins as found');
END;
CREATE TRIGGER study_is_new BEFORE INSERT ON study
  WHEN EXISTS (SELECT 1 FROM study WHERE uid = NEW.uid) OR EXISTS (SELECT 1 FROM study WHERE id = NEW.id) BEGIN
  SELECT RAISE(ABORT, 'law: studies are never replaced');
END;
CREATE TRIGGER study_stays BEFORE DELETE ON study BEGIN SELECT RAISE(ABORT, 'law: studies are never deleted'); END;
CREATE TRIGGER study_is_who_it_is BEFORE UPDATE OF uid, found_event ON study BEGIN SELECT RAISE(ABORT, 'law: UIDs do not change'); END;
CREATE TRIGGER study_is_told_of BEFORE INSERT ON study
  WHEN (SELECT kind FROM event WHERE id = NEW.found_event) IS NOT 'studies found' BEGIN
  SELECT RAISE(ABORT, 'law: an event tells of a study before it is added');
END;

CREATE TRIGGER instance_begins BEFORE INSERT ON instance WHEN NEW.state > 1 BEGIN
  SELECT RAISE(ABORT, 'law: an instance begins as expected or staged');
END;
CREATE TRIGGER instance_law BEFORE UPDATE OF state ON instance WHEN OLD.state <> NEW.state BEGIN
  SELECT RAISE(ABORT, 'law: no such step for an instance')
    WHERE NOT EXISTS (SELECT 1 FROM transition WHERE entity = 'instance' AND from_state = OLD.state AND to_state = NEW.state);
END;
CREATE TRIGGER instance_keeps_its_bytes BEFORE UPDATE OF dataset_sha256, file_sha256, size_bytes, crc64nvme ON instance
  WHEN OLD.state > 0 AND NEW.state > 0 BEGIN
  SELECT RAISE(ABORT, 'law: the hash of received bytes does not change')
    WHERE OLD.dataset_sha256 IS NOT NEW.dataset_sha256 OR OLD.file_sha256 IS NOT NEW.file_sha256
       OR OLD.size_bytes IS NOT NEW.size_bytes OR OLD.crc64nvme IS NOT NEW.crc64nvme;
END;
CREATE TRIGGER instance_stays BEFORE DELETE ON instance BEGIN SELECT RAISE(ABORT, 'law: instances are never deleted'); END;
CREATE TRIGGER series_stays BEFORE DELETE ON series BEGIN SELECT RAISE(ABORT, 'law: series are never deleted'); END;
CREATE TRIGGER copy_stays BEFORE DELETE ON copy BEGIN SELECT RAISE(ABORT, 'law: copies are never deleted'); END;
CREATE TRIGGER quarantine_stays BEFORE DELETE ON quarantine BEGIN SELECT RAISE(ABORT, 'law: quarantined files stay on record'); END;
CREATE TRIGGER event_stays BEFORE DELETE ON event BEGIN SELECT RAISE(ABORT, 'law: events are never deleted'); END;
CREATE TRIGGER event_is_new BEFORE INSERT ON event WHEN NEW.id > 0 BEGIN -- REPLACE deletes without asking event_stays
  SELECT RAISE(ABORT, 'law: events never change') WHERE EXISTS (SELECT 1 FROM event WHERE id = NEW.id);
END;
CREATE TRIGGER seal_stays BEFORE DELETE ON seal BEGIN SELECT RAISE(ABORT, 'law: seals are never deleted'); END;
CREATE TRIGGER seal_is_final BEFORE UPDATE ON seal BEGIN SELECT RAISE(ABORT, 'law: seals never change'); END;
CREATE TRIGGER seal_is_next BEFORE INSERT ON seal BEGIN
  SELECT RAISE(ABORT, 'law: seals count up') WHERE NEW.id IS NOT (SELECT coalesce(max(id), 0) + 1 FROM seal);
END;
CREATE TRIGGER acceptance_is_new BEFORE INSERT ON acceptance WHEN NEW.id > 0 BEGIN
  SELECT RAISE(ABORT, 'law: signatures never change') WHERE EXISTS (SELECT 1 FROM acceptance WHERE id = NEW.id);
END;
CREATE TRIGGER acceptance_stays BEFORE DELETE ON acceptance BEGIN SELECT RAISE(ABORT, 'law: signatures are never deleted'); END;
CREATE TRIGGER acceptance_is_final BEFORE UPDATE ON acceptance BEGIN SELECT RAISE(ABORT, 'law: signatures never change'); END;
CREATE TRIGGER revocation_is_new BEFORE INSERT ON revocation BEGIN
  SELECT RAISE(ABORT, 'law: signatures never change')
    WHERE EXISTS (SELECT 1 FROM revocation WHERE id = NEW.id OR acceptance_id = NEW.acceptance_id);
END;
CREATE TRIGGER revocation_stays BEFORE DELETE ON revocation BEGIN SELECT RAISE(ABORT, 'law: signatures are never deleted'); END;
CREATE TRIGGER revocation_is_final BEFORE UPDATE ON revocation BEGIN SELECT RAISE(ABORT, 'law: signatures never change'); END;
CREATE TRIGGER event_is_final BEFORE UPDATE ON event BEGIN SELECT RAISE(ABORT, 'law: events never change'); END;

-- ---- the tallies --------------------------------------------------------------------------------------------------------

CREATE TRIGGER instance_counted AFTER INSERT ON instance BEGIN
  UPDATE series SET expected = expected + (NEW.state = 0), staged = staged + (NEW.state = 1),
    waiting_bytes = waiting_bytes + CASE NEW.state WHEN 1 THEN NEW.size_bytes ELSE 0 END WHERE id = NEW.series_id;
END;
CREATE TRIGGER instance_recounted AFTER UPDATE OF state ON instance WHEN OLD.state <> NEW.state BEGIN
  UPDATE series SET
    expected = expected + (NEW.state = 0) - (OLD.state = 0), staged = staged + (NEW.state = 1) - (OLD.state = 1),
    stored = stored + (NEW.state = 2) - (OLD.state = 2), verified = verified + (NEW.state = 3) - (OLD.state = 3),
    waiting_bytes = waiting_bytes + CASE WHEN NEW.state BETWEEN 1 AND 2 THEN NEW.size_bytes ELSE 0 END
      - CASE WHEN OLD.state BETWEEN 1 AND 2 THEN OLD.size_bytes ELSE 0 END,
    verified_bytes = verified_bytes + CASE NEW.state WHEN 3 THEN NEW.size_bytes ELSE 0 END - CASE OLD.state WHEN 3 THEN OLD.size_bytes ELSE 0 END
  WHERE id = NEW.series_id;
END;

CREATE TRIGGER instance_leaves_root AFTER UPDATE OF verified_seal ON instance WHEN OLD.verified_seal IS NOT NEW.verified_seal BEGIN
  DELETE FROM study_root WHERE study_id = (SELECT study_id FROM series WHERE id = NEW.series_id);
END;
CREATE TRIGGER copy_leaves_root AFTER UPDATE OF verified_seal ON copy WHEN OLD.verified_seal IS NOT NEW.verified_seal BEGIN
  DELETE FROM study_root WHERE study_id = (SELECT study_id FROM series WHERE id = NEW.series_id);
END;

-- ---- the log ------------------------------------------------------------------------------------------------------------

-- Whatever is not sealed as a step of an instance gets an event that says what the row says, as quote() writes it, joined by commas:
-- `audit` compares them.
CREATE TRIGGER event_meta AFTER INSERT ON meta BEGIN
  INSERT INTO event(run_id, kind, detail) VALUES ((SELECT max(id) FROM run), 'meta',
      quote(NEW.key) || ',' || quote(NEW.value));
END;
CREATE TRIGGER event_meta_changed AFTER UPDATE ON meta WHEN OLD.value <> NEW.value BEGIN
  INSERT INTO event(run_id, kind, detail) VALUES ((SELECT max(id) FROM run), 'meta',
      quote(NEW.key) || ',' || quote(NEW.value));
END;
CREATE TRIGGER event_run AFTER INSERT ON run BEGIN
  INSERT INTO event(at, run_id, kind, detail) VALUES
    (NEW.started_at, NEW.id, 'run started', NEW.verb || ' by ' || NEW.operator || ' on ' || NEW.host),
    (NEW.started_at, NEW.id, 'run row',
      quote(NEW.id) || ',' || quote(NEW.verb) || ',' || quote(NEW.operator) || ',' || quote(NEW.host) || ',' || quote(NEW.pid) || ',' ||
      quote(NEW.version) || ',' || quote(NEW.sqlite_version) || ',' || quote(NEW.config_sha256) || ',' || quote(NEW.started_at));
END;
CREATE TRIGGER event_run_ended AFTER UPDATE OF ended_at ON run WHEN NEW.ended_at IS NOT NULL BEGIN
  INSERT INTO event(at, run_id, kind, detail) VALUES (NEW.ended_at, NEW.id, 'run ended', 'exit ' || NEW.exit_code);
END;
CREATE TRIGGER event_habit AFTER INSERT ON habit BEGIN
  INSERT INTO event(at, run_id, kind, detail)
    VALUES (NEW.learned_at, (SELECT max(id) FROM run), 'habit',
      quote(NEW.name) || ',' || quote(NEW.value) || ',' || quote(NEW.detail) || ',' || quote(NEW.learned_at));
END;
CREATE TRIGGER event_habit_changed AFTER UPDATE ON habit BEGIN
  INSERT INTO event(at, run_id, kind, detail)
    VALUES (NEW.learned_at, (SELECT max(id) FROM run), 'habit',
      quote(NEW.name) || ',' || quote(NEW.value) || ',' || quote(NEW.detail) || ',' || quote(NEW.learned_at));
END;
CREATE TRIGGER event_study_row AFTER UPDATE OF date, time, modalities, claimed_instances, claimed_by_series, listed_instances, attempts, error,
  detail ON study WHEN OLD.date IS NOT NEW.date OR OLD.time IS NOT NEW.time OR OLD.modalities <> NEW.modalities
    OR OLD.claimed_instances IS NOT NEW.claimed_instances OR OLD.claimed_by_series IS NOT NEW.claimed_by_series
    OR OLD.listed_instances IS NOT NEW.listed_instances OR OLD.attempts <> NEW.attempts OR OLD.error IS NOT NEW.error
    OR OLD.detail IS NOT NEW.detail BEGIN
  INSERT INTO event(run_id, kind, study_uid, detail) VALUES ((SELECT max(id) FROM run), 'study row', NEW.uid,
      quote(NEW.date) || ',' || quote(NEW.time) || ',' || quote(NEW.modalities) || ',' || quote(NEW.claimed_instances) || ',' ||
      quote(NEW.claimed_by_series) || ',' || quote(NEW.listed_instances) || ',' || quote(NEW.attempts) || ',' || quote(NEW.error) || ',' ||
      quote(NEW.detail));
END;
CREATE TRIGGER event_study AFTER UPDATE OF state ON study WHEN OLD.state <> NEW.state BEGIN
  INSERT INTO event(at, run_id, kind, study_uid, detail) VALUES (NEW.changed_at, (SELECT max(id) FROM run),
    'study ' || (SELECT name FROM state_name WHERE entity = 'study' AND state = NEW.state), NEW.uid,
    CASE WHEN NEW.state = 5 THEN NEW.error || ': ' || coalesce(NEW.detail, '') END);
END;
CREATE TRIGGER event_instance_unexpected AFTER INSERT ON instance WHEN NEW.listed = 0 BEGIN
  INSERT INTO event(run_id, kind, study_uid, series_uid, sop_uid)
    SELECT (SELECT max(id) FROM run), 'instance unexpected', study.uid, series.uid, NEW.sop_uid
    FROM series JOIN study ON study.id = series.study_id WHERE series.id = NEW.series_id;
END;
CREATE TRIGGER event_instance_fell_back AFTER UPDATE OF staged_seal, stored_seal, verified_seal, proof ON instance
  WHEN (OLD.staged_seal IS NOT NULL AND OLD.staged_seal IS NOT NEW.staged_seal)
    OR (OLD.stored_seal IS NOT NULL AND OLD.stored_seal IS NOT NEW.stored_seal)
    OR (OLD.verified_seal IS NOT NULL AND (OLD.verified_seal IS NOT NEW.verified_seal OR OLD.proof IS NOT NEW.proof)) BEGIN
  INSERT INTO event(run_id, kind, study_uid, series_uid, sop_uid, detail)
    SELECT (SELECT max(id) FROM run), CASE WHEN NEW.state < OLD.state THEN 'instance fell back' ELSE 'proof raised' END,
      study.uid, series.uid, NEW.sop_uid,
      quote((SELECT name FROM state_name WHERE entity = 'instance' AND state = OLD.state)) || ',' ||
      quote((SELECT name FROM state_name WHERE entity = 'instance' AND state = NEW.state)) || ',' || quote(NULL) || ',' ||
      quote(CASE WHEN OLD.staged_seal IS NOT NEW.staged_seal THEN OLD.staged_seal END) || ',' || quote(OLD.size_bytes) || ',' ||
      quote(lower(hex(OLD.dataset_sha256))) || ',' || quote(lower(hex(OLD.file_sha256))) || ',' ||
      quote(printf('%016x', OLD.crc64nvme)) || ',' ||
      quote(CASE WHEN OLD.pixel_crc64 IS NOT NULL THEN printf('%016x', OLD.pixel_crc64) END) || ',' ||
      quote((SELECT uid FROM uid_name WHERE id = OLD.sop_class_id)) || ',' ||
      quote((SELECT uid FROM uid_name WHERE id = OLD.transfer_syntax_id)) || ',' || quote(OLD.notes) || ',' ||
      quote(OLD.staged_at) || ',' || quote(CASE WHEN OLD.stored_seal IS NOT NEW.stored_seal THEN OLD.stored_seal END) || ',' ||
      quote(OLD.stored_at) || ',' || quote(OLD.version) || ',' || quote(OLD.checksum) || ',' || quote(OLD.beside) || ',' ||
      quote(CASE WHEN OLD.verified_seal IS NOT NEW.verified_seal OR OLD.proof IS NOT NEW.proof THEN OLD.verified_seal END) || ',' ||
      quote(CASE OLD.proof WHEN 3 THEN 'attested' WHEN 4 THEN 'read_back' END) || ',' || quote(OLD.verified_at)
    FROM series JOIN study ON study.id = series.study_id WHERE series.id = NEW.series_id;
END;
CREATE TRIGGER event_copy_fell_back AFTER UPDATE OF staged_seal, stored_seal, verified_seal, proof ON copy
  WHEN (OLD.staged_seal IS NOT NULL AND OLD.staged_seal IS NOT NEW.staged_seal)
    OR (OLD.stored_seal IS NOT NULL AND OLD.stored_seal IS NOT NEW.stored_seal)
    OR (OLD.verified_seal IS NOT NULL AND (OLD.verified_seal IS NOT NEW.verified_seal OR OLD.proof IS NOT NEW.proof)) BEGIN
  INSERT INTO event(run_id, kind, study_uid, series_uid, sop_uid, detail)
    SELECT (SELECT max(id) FROM run), CASE WHEN NEW.state < OLD.state THEN 'copy fell back' ELSE 'proof raised' END,
      study.uid, series.uid, NEW.sop_uid,
      quote((SELECT name FROM state_name WHERE entity = 'instance' AND state = OLD.state)) || ',' ||
      quote((SELECT name FROM state_name WHERE entity = 'instance' AND state = NEW.state)) || ',' ||
      quote(lower(hex(OLD.dataset_sha256))) || ',' ||
      quote(CASE WHEN OLD.staged_seal IS NOT NEW.staged_seal THEN OLD.staged_seal END) || ',' || quote(OLD.size_bytes) || ',' ||
      quote(lower(hex(OLD.dataset_sha256))) || ',' || quote(lower(hex(OLD.file_sha256))) || ',' ||
      quote(printf('%016x', OLD.crc64nvme)) || ',' || quote(NULL) || ',' || quote(NULL) || ',' || quote(NULL) || ',' ||
      quote(NULL) || ',' || quote(OLD.staged_at) || ',' ||
      quote(CASE WHEN OLD.stored_seal IS NOT NEW.stored_seal THEN OLD.stored_seal END) || ',' || quote(OLD.stored_at) || ',' ||
      quote(OLD.version) || ',' || quote(OLD.checksum) || ',' || quote(1) || ',' ||
      quote(CASE WHEN OLD.verified_seal IS NOT NEW.verified_seal OR OLD.proof IS NOT NEW.proof THEN OLD.verified_seal END) || ',' ||
      quote(CASE OLD.proof WHEN 3 THEN 'attested' WHEN 4 THEN 'read_back' END) || ',' || quote(OLD.verified_at)
    FROM series JOIN study ON study.id = series.study_id WHERE series.id = NEW.series_id;
END;
CREATE TRIGGER event_instance_conflict AFTER UPDATE OF conflict ON instance WHEN NEW.conflict > OLD.conflict BEGIN
  INSERT INTO event(run_id, kind, study_uid, series_uid, sop_uid)
    SELECT (SELECT max(id) FROM run), 'instance conflict', study.uid, series.uid, NEW.sop_uid
    FROM series JOIN study ON study.id = series.study_id WHERE series.id = NEW.series_id;
END;
CREATE TRIGGER event_instance_beside AFTER UPDATE OF beside ON instance WHEN NEW.beside > OLD.beside BEGIN
  INSERT INTO event(run_id, kind, study_uid, series_uid, sop_uid)
    SELECT (SELECT max(id) FROM run), 'instance lies beside', study.uid, series.uid, NEW.sop_uid
    FROM series JOIN study ON study.id = series.study_id WHERE series.id = NEW.series_id;
END;
CREATE TRIGGER event_copy AFTER INSERT ON copy BEGIN
  INSERT INTO event(run_id, kind, study_uid, series_uid, sop_uid, detail)
    SELECT (SELECT max(id) FROM run), 'instance has a second content', study.uid, series.uid, NEW.sop_uid, 'data set ' || hex(NEW.dataset_sha256)
    FROM series JOIN study ON study.id = series.study_id WHERE series.id = NEW.series_id;
END;
CREATE TRIGGER event_quarantined AFTER INSERT ON quarantine BEGIN
  INSERT INTO event(at, run_id, kind, study_uid, series_uid, sop_uid, detail)
    VALUES (NEW.received_at, (SELECT max(id) FROM run), 'file quarantined', NEW.study_uid, NEW.series_uid, NEW.sop_uid,
      quote(NEW.id) || ',' || quote(NEW.file) || ',' || quote(NEW.reason) || ',' || quote(NEW.claimed) || ',' ||
      quote(NEW.size_bytes) || ',' || quote(lower(hex(NEW.file_sha256))));
END;
CREATE TRIGGER event_quarantined_accepted AFTER UPDATE OF accepted_by, accepted_reason ON quarantine BEGIN
  INSERT INTO event(run_id, kind, study_uid, series_uid, sop_uid, detail)
    VALUES ((SELECT max(id) FROM run), 'quarantine row', NEW.study_uid, NEW.series_uid, NEW.sop_uid,
      quote(NEW.id) || ',' || quote(NEW.accepted_by) || ',' || quote(NEW.accepted_reason));
END;
CREATE TRIGGER event_accepted AFTER INSERT ON acceptance BEGIN
  INSERT INTO event(at, run_id, kind, study_uid, sop_uid, detail)
    SELECT NEW.accepted_at, (SELECT max(id) FROM run), 'exception accepted', uid, NEW.sop_uid, 'by ' || NEW.accepted_by ||
      CASE WHEN NEW.role <> '' THEN ' (' || NEW.role || ')' ELSE '' END || ': ' || CASE WHEN NEW.code <> 'other' THEN NEW.code || ': ' ELSE '' END ||
      NEW.reason || '; covers ' || NEW.covers FROM study WHERE id = NEW.study_id;
  INSERT INTO event(at, run_id, kind, study_uid, sop_uid, detail)
    SELECT NEW.accepted_at, (SELECT max(id) FROM run), 'acceptance row', uid, NEW.sop_uid,
      quote(NEW.id) || ',' || quote(NEW.covers) || ',' || quote(NEW.code) || ',' || quote(NEW.reason) || ',' || quote(NEW.accepted_by) || ',' ||
      quote(NEW.role) || ',' || quote(NEW.accepted_at)
    FROM study WHERE id = NEW.study_id;
END;
CREATE TRIGGER event_revoked AFTER INSERT ON revocation BEGIN
  INSERT INTO event(at, run_id, kind, study_uid, sop_uid, detail)
    SELECT NEW.revoked_at, (SELECT max(id) FROM run), 'exception revoked', study.uid, acceptance.sop_uid, 'by ' || NEW.revoked_by ||
      CASE WHEN NEW.role <> '' THEN ' (' || NEW.role || ')' ELSE '' END || ': ' || NEW.reason || '; was accepted by ' || accepted_by
    FROM acceptance JOIN study ON study.id = acceptance.study_id WHERE acceptance.id = NEW.acceptance_id;
  INSERT INTO event(at, run_id, kind, study_uid, sop_uid, detail)
    SELECT NEW.revoked_at, (SELECT max(id) FROM run), 'revocation row', study.uid, acceptance.sop_uid,
      quote(NEW.id) || ',' || quote(NEW.acceptance_id) || ',' || quote(NEW.reason) || ',' || quote(NEW.revoked_by) || ',' ||
      quote(NEW.role) || ',' || quote(NEW.revoked_at)
    FROM acceptance JOIN study ON study.id = acceptance.study_id WHERE acceptance.id = NEW.acceptance_id;
END;
CREATE TRIGGER event_window_planned AFTER INSERT ON window BEGIN
  INSERT INTO event(run_id, kind, detail) VALUES ((SELECT max(id) FROM run), 'window row',
      quote(NEW.id) || ',' || quote(NEW.sweep) || ',' || quote(NEW.axis) || ',' || quote(NEW.lo) || ',' || quote(NEW.hi) || ',' ||
      quote(NEW.time_lo) || ',' || quote(NEW.time_hi) || ',' || quote(NEW.modality) || ',' || quote(length(NEW.patient)) || ',' ||
      quote(length(NEW.accession)) || ',' || quote(NEW.parent) || ',' || quote(NEW.part_by) || ',' || quote(NEW.purpose) || ',' ||
      quote(NEW.state) || ',' || quote(NEW.row_count) || ',' || quote(NEW.study_count) || ',' || quote(NEW.outside_count) || ',' ||
      quote(NEW.error) || ',' || quote(NEW.detail) || ',' || quote(NEW.suspicion) || ',' || quote(NEW.blocks) || ',' ||
      quote(NEW.accepted_by) || ',' || quote(NEW.accepted_reason) || ',' || quote(NEW.answered_at));
END;
CREATE TRIGGER event_window_changed AFTER UPDATE OF purpose, state, row_count, study_count, outside_count, error, detail, suspicion, blocks,
  accepted_by, accepted_reason, answered_at ON window WHEN OLD.purpose <> NEW.purpose OR OLD.state <> NEW.state
    OR OLD.row_count IS NOT NEW.row_count OR OLD.study_count IS NOT NEW.study_count OR OLD.outside_count <> NEW.outside_count
    OR OLD.error IS NOT NEW.error OR OLD.detail IS NOT NEW.detail OR OLD.suspicion IS NOT NEW.suspicion OR OLD.blocks <> NEW.blocks
    OR OLD.accepted_by IS NOT NEW.accepted_by OR OLD.accepted_reason IS NOT NEW.accepted_reason OR OLD.answered_at IS NOT NEW.answered_at BEGIN
  INSERT INTO event(run_id, kind, detail) VALUES ((SELECT max(id) FROM run), 'window row',
      quote(NEW.id) || ',' || quote(NEW.sweep) || ',' || quote(NEW.axis) || ',' || quote(NEW.lo) || ',' || quote(NEW.hi) || ',' ||
      quote(NEW.time_lo) || ',' || quote(NEW.time_hi) || ',' || quote(NEW.modality) || ',' || quote(length(NEW.patient)) || ',' ||
      quote(length(NEW.accession)) || ',' || quote(NEW.parent) || ',' || quote(NEW.part_by) || ',' || quote(NEW.purpose) || ',' ||
      quote(NEW.state) || ',' || quote(NEW.row_count) || ',' || quote(NEW.study_count) || ',' || quote(NEW.outside_count) || ',' ||
      quote(NEW.error) || ',' || quote(NEW.detail) || ',' || quote(NEW.suspicion) || ',' || quote(NEW.blocks) || ',' ||
      quote(NEW.accepted_by) || ',' || quote(NEW.accepted_reason) || ',' || quote(NEW.answered_at));
END;
CREATE TRIGGER event_window_suspicious AFTER UPDATE OF suspicion ON window WHEN NEW.suspicion IS NOT NULL AND OLD.suspicion IS NOT NEW.suspicion BEGIN
  INSERT INTO event(run_id, kind, detail) VALUES ((SELECT max(id) FROM run), 'window suspicious', 'w' || NEW.id || ': ' || NEW.suspicion);
END;
CREATE TRIGGER event_window_failed AFTER UPDATE OF state ON window WHEN NEW.state = 2 BEGIN
  INSERT INTO event(run_id, kind, detail) VALUES ((SELECT max(id) FROM run), 'window failed', 'w' || NEW.id || ': ' || coalesce(NEW.error, ''));
END;

-- ---- views for people -----------------------------------------------------------------------------------------------------

-- Studies with their state, counts and sizes in words.
CREATE VIEW studies AS
  SELECT study.uid AS study, state_name.name AS state, study.date, study.modalities, study.claimed_instances, study.listed_instances,
    coalesce(sum(series.expected), 0) AS expected, coalesce(sum(series.staged), 0) AS staged, coalesce(sum(series.stored), 0) AS stored,
    coalesce(sum(series.verified), 0) AS verified, study.attempts, study.error, study.detail,
    strftime('%Y-%m-%dT%H:%M:%SZ', study.found_at / 1000, 'unixepoch') AS found_at,
    strftime('%Y-%m-%dT%H:%M:%SZ', study.changed_at / 1000, 'unixepoch') AS changed_at
  FROM study JOIN state_name ON state_name.entity = 'study' AND state_name.state = study.state
  LEFT JOIN series ON series.study_id = study.id GROUP BY study.id;

-- Instances with UIDs, hex hashes and ISO times.
CREATE VIEW instances AS
  SELECT study.uid AS study, series.uid AS series, instance.sop_uid AS sop, series.modality, state_name.name AS state,
    instance.listed, instance.conflict, instance.beside, class.uid AS sop_class, syntax.uid AS transfer_syntax, instance.size_bytes,
    lower(hex(instance.dataset_sha256)) AS dataset_sha256, lower(hex(instance.file_sha256)) AS file_sha256,
    CASE instance.proof WHEN 3 THEN 'attested' WHEN 4 THEN 'read_back' END AS proof, instance.version, instance.notes,
    strftime('%Y-%m-%dT%H:%M:%SZ', instance.staged_at / 1000, 'unixepoch') AS staged_at,
    strftime('%Y-%m-%dT%H:%M:%SZ', instance.stored_at / 1000, 'unixepoch') AS stored_at,
    strftime('%Y-%m-%dT%H:%M:%SZ', instance.verified_at / 1000, 'unixepoch') AS verified_at
  FROM instance JOIN series ON series.id = instance.series_id JOIN study ON study.id = series.study_id
  JOIN state_name ON state_name.entity = 'instance' AND state_name.state = instance.state
  LEFT JOIN uid_name AS class ON class.id = instance.sop_class_id LEFT JOIN uid_name AS syntax ON syntax.id = instance.transfer_syntax_id;

-- The log with ISO times and operators.
CREATE VIEW events AS
  SELECT event.id, strftime('%Y-%m-%dT%H:%M:%SZ', event.at / 1000, 'unixepoch') AS at, event.run_id AS run, run.operator,
    event.kind, event.study_uid AS study, event.series_uid AS series, event.sop_uid AS sop, event.detail
  FROM event LEFT JOIN run ON run.id = event.run_id;
