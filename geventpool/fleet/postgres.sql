-- Who may have how many connections of one cap: geventpool.fleet.share.grant, in PostgreSQL.

create table if not exists geventpool_fleet (
    name text primary key,
    epoch text not null,
    learns_until double precision not null
);

create table if not exists geventpool_fleet_process (
    name text not null,
    id text collate "C" not null,
    expires double precision not null,
    used integer not null,
    has integer not null,
    share integer not null,
    wants integer not null,
    weight integer not null,
    floor integer not null,
    lease double precision not null,
    generation integer not null,
    primary key (name, id)
);

create or replace function geventpool_fleet_renew(
    my_name text, my_id text, my_cap integer, my_used integer, my_has integer, my_wants integer,
    my_weight integer, my_floor integer, my_lease double precision, my_generation integer,
    new_epoch text, out my_share integer, out members integer, out epoch text
) language plpgsql as $$
declare
    memory constant integer := 6;
    moment double precision;
    learns double precision;
    newest integer;
    free integer;
    floors integer;
begin
    insert into geventpool_fleet
        values (my_name, new_epoch, extract(epoch from clock_timestamp()) + my_lease)
        on conflict do nothing;
    select f.epoch, f.learns_until into epoch, learns
        from geventpool_fleet f where f.name = my_name for update;
    moment := extract(epoch from clock_timestamp());  -- after the wait for others
    delete from geventpool_fleet_process p
        where p.name = my_name and (p.id = my_id or moment >= p.expires + memory * p.lease);
    select count(*) filter (where moment < p.expires) + 1,
           greatest(max(p.generation) filter (where moment < p.expires), my_generation),
           my_cap - coalesce(sum(case when moment < p.expires
                                 then greatest(p.share, p.used, p.has) else p.floor end), 0),
           my_floor + coalesce(sum(p.floor), 0)
        into members, newest, free, floors
        from geventpool_fleet_process p where p.name = my_name;
    if moment < learns then
        my_share := case when my_has > 0 then my_has else least(my_floor, greatest(free, 0)) end;
    else
        select my_floor + count(*) filter (where unit.id = my_id) into my_share from (
            select claim.id
            from (
                select p.id, p.weight, p.wants, p.floor, p.generation
                    from geventpool_fleet_process p
                    where p.name = my_name and moment < p.expires
                union all
                select my_id, my_weight, my_wants, my_floor, my_generation
            ) claim,
            generate_series(1, case when claim.generation < newest then 0
                                    else greatest(0, claim.wants - claim.floor) end) k
            order by k::double precision / claim.weight, claim.id collate "C"
            limit greatest(0, my_cap - floors)
        ) unit;
        my_share := greatest(0, least(my_share, free));
    end if;
    insert into geventpool_fleet_process values (
        my_name, my_id, moment + my_lease, my_used, my_has, my_share, my_wants, my_weight,
        my_floor, my_lease, my_generation
    );
end
$$;
