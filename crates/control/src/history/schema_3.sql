-- Who changed a delivery, or asked for it.
ALTER TABLE timeline ADD COLUMN actor TEXT;
