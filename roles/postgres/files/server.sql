-- What is kept for the whole server. Asked in the database postgres, where no owner makes anything.
SELECT ARRAY(SELECT datname::text FROM pg_catalog.pg_database
              WHERE EXISTS (SELECT FROM aclexplode(coalesce(datacl, acldefault('d', datdba))) WHERE grantee = 0)) AS open_to_all,
       -- Also a database that was set aside: its owner still reads it.
       coalesce((SELECT json_agg(json_build_array(datname, rolname) ORDER BY datname)
                   FROM pg_catalog.pg_database JOIN pg_catalog.pg_roles r ON r.oid = datdba WHERE NOT rolsuper), '[]') AS owned,
       coalesce((SELECT setconfig FROM pg_catalog.pg_db_role_setting JOIN pg_catalog.pg_database d ON d.oid = setdatabase
                  WHERE setrole = 0 AND datname = %(database)s), '{}') AS database_settings,
       coalesce((SELECT setconfig FROM pg_catalog.pg_db_role_setting JOIN pg_catalog.pg_roles r ON r.oid = setrole
                  WHERE setdatabase = 0 AND rolname = %(role)s), '{}') AS owner_settings,
       pg_conf_load_time() < (pg_stat_file(current_setting('hba_file'))).modification AS access_is_newer
