SELECT current_setting('server_version') AS server,
       current_user AS role,
       (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS superuser,
       current_setting('TimeZone') AS timezone,
       pg_encoding_to_char(encoding) AS encoding,
       pg_database_size(datname) AS bytes,
       (SELECT extversion FROM pg_extension WHERE extname = 'vector') AS vector,
       (SELECT extversion FROM pg_extension WHERE extname = 'pg_trgm') AS pg_trgm,
       (SELECT count(*) FROM public.entities) AS entities,
       (SELECT count(*) FROM public.entities_vec_v2) AS vectors,
       (SELECT count(*) FROM public.entities_fts) AS texts,
       (SELECT bool_and(indisvalid) FROM pg_index WHERE indexrelid = 'public.idx_entities_vec_v2_embedding'::regclass) AS hnsw_valid
FROM pg_database
WHERE datname = current_database()
