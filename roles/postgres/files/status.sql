-- Asked through the socket in the container, in the database of the applications. Functions are found in pg_catalog only.
SELECT json_build_object(
    'server', current_setting('server_version'),
    'vector', (SELECT extversion FROM pg_catalog.pg_extension WHERE extname = 'vector'),
    'others', (SELECT count(*) FROM pg_catalog.pg_database
                WHERE NOT datistemplate AND datname NOT IN ('postgres', current_database())),
    'rights', (SELECT concat_ws(', ', CASE WHEN rolsuper THEN 'SUPERUSER' END, CASE WHEN rolcreatedb THEN 'CREATEDB' END,
                                CASE WHEN rolcreaterole THEN 'CREATEROLE' END, CASE WHEN rolreplication THEN 'REPLICATION' END,
                                CASE WHEN rolbypassrls THEN 'BYPASSRLS' END)
                 FROM pg_catalog.pg_roles WHERE rolname = :'role'));
