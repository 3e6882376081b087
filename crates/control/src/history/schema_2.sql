-- Whose matter a refusal was, and the name of the rule that read the reply.
ALTER TABLE timeline ADD COLUMN party TEXT;
ALTER TABLE timeline ADD COLUMN rule TEXT;
