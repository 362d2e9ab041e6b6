-- What a role may that no owner of a database needs: as words of ALTER ROLE; memberships that lead to such rights, or in one of the roles
-- that PostgreSQL defines; parameters of the server. No row where there is nothing of the kind.
WITH RECURSIVE leads (membership, roleid) AS (
    SELECT m.roleid, m.roleid
      FROM pg_catalog.pg_auth_members m JOIN pg_catalog.pg_roles r ON r.oid = m.member
     WHERE r.rolname = %(role)s
    UNION
    SELECT l.membership, m.roleid FROM leads l JOIN pg_catalog.pg_auth_members m ON m.member = l.roleid
), found (attributes, memberships, parameters) AS (
    SELECT array_remove(ARRAY[CASE WHEN rolsuper THEN 'SUPERUSER' END, CASE WHEN rolcreatedb THEN 'CREATEDB' END,
                              CASE WHEN rolcreaterole THEN 'CREATEROLE' END, CASE WHEN rolreplication THEN 'REPLICATION' END,
                              CASE WHEN rolbypassrls THEN 'BYPASSRLS' END], NULL),
           ARRAY(SELECT DISTINCT pg_get_userbyid(l.membership)::text
                   FROM leads l JOIN pg_catalog.pg_roles r ON r.oid = l.roleid
                  WHERE r.rolsuper OR r.rolcreatedb OR r.rolcreaterole OR r.rolreplication OR r.rolbypassrls OR r.rolname LIKE 'pg\_%%'),
           ARRAY(SELECT DISTINCT p.parname FROM pg_catalog.pg_parameter_acl p, aclexplode(p.paracl) a WHERE a.grantee = o.oid)
      FROM pg_catalog.pg_roles o
     WHERE rolname = %(role)s
)
SELECT attributes, memberships, parameters FROM found WHERE cardinality(attributes) + cardinality(memberships) + cardinality(parameters) > 0
