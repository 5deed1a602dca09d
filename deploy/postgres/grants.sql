-- What the chat servers' role needs, and nothing else. As the owner of the tables, after each migration:
--
--     psql --variable=ON_ERROR_STOP=1 --variable=app=chat --file=grants.sql "$OWNERS_URL"
GRANT SELECT, INSERT, UPDATE, DELETE ON users, threads, steps, elements, feedbacks TO :"app";
GRANT SELECT, INSERT, UPDATE, DELETE ON forebay_checkpoints, forebay_tombstones, forebay_deleted, forebay_garbage TO :"app";
GRANT SELECT ON forebay_migrations, forebay_database TO :"app";
