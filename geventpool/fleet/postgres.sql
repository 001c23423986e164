-- Who may have how many connections of one cap: geventpool.fleet.share.grant, in PostgreSQL.

-- Unlogged: a renewal waits for no disk.  After a crash they are empty, and all is learnt anew.
create unlogged table if not exists geventpool_fleet (
    name text primary key,
    epoch text not null,
    learns_until double precision not null
);

create unlogged table if not exists geventpool_fleet_member (
    name text not null,
    id text collate "C" not null,
    expires double precision not null,
    used integer not null,
    has integer not null,
    share integer not null,
    needs integer not null,
    wants integer not null,
    weight integer not null,
    floor integer not null,
    lease double precision not null,
    generation integer not null,
    number integer not null,
    primary key (name, id)
);
-- Tables of before have none.
alter table geventpool_fleet_member add column if not exists place integer;

create or replace function geventpool_fleet_renew(
    my_name text, my_id text, my_cap integer, my_used integer, my_has integer, my_needs integer,
    my_wants integer, my_weight integer, my_floor integer, my_lease double precision,
    my_generation integer, my_number integer, new_epoch text, my_place integer,
    out my_share integer, out members integer, out epoch text, out place integer
) language plpgsql as $$
declare
    memory constant integer := 6;
    moment double precision;
    learns double precision;
    newest integer;
    free integer;
    floors integer;
    earlier integer;  -- its share, if a later report has come before this one
begin
    insert into geventpool_fleet
        values (my_name, new_epoch, extract(epoch from clock_timestamp()) + my_lease)
        on conflict do nothing;
    select f.epoch, f.learns_until into epoch, learns
        from geventpool_fleet f where f.name = my_name for update;
    moment := extract(epoch from clock_timestamp());  -- after the wait for others
    select p.share, p.place into earlier, place from geventpool_fleet_member p
        where p.name = my_name and p.id = my_id and p.number >= my_number;
    if found then
        my_share := earlier;
        select count(*) filter (where p.id = my_id or moment < p.expires) into members
            from geventpool_fleet_member p where p.name = my_name;
        return;
    end if;
    select coalesce(p.place, my_place) into place
        from (select) one left join geventpool_fleet_member p on p.name = my_name and p.id = my_id;
    delete from geventpool_fleet_member p
        where p.name = my_name and (p.id = my_id or moment >= p.expires + memory * p.lease);
    select count(*) filter (where moment < p.expires) + 1,
           greatest(max(p.generation) filter (where moment < p.expires), my_generation),
           my_cap - coalesce(sum(case when moment < p.expires
                                 then greatest(p.share, p.used, p.has) else p.floor end), 0),
           my_floor + coalesce(sum(p.floor), 0)
        into members, newest, free, floors
        from geventpool_fleet_member p where p.name = my_name;
    if moment < learns then
        my_share := case when my_has > 0 then my_has else least(my_floor, greatest(free, 0)) end;
    else
        select my_floor + count(*) filter (where unit.id = my_id) into my_share from (
            select claim.id
            from (
                select p.id, p.weight, greatest(0, p.needs - p.floor) as needs,
                       greatest(0, p.wants - p.floor) as wants
                    from geventpool_fleet_member p
                    where p.name = my_name and moment < p.expires and p.generation = newest
                union all
                select my_id, my_weight, greatest(0, my_needs - my_floor),
                       greatest(0, my_wants - my_floor)
                    where my_generation = newest
            ) claim,
            generate_series(1, greatest(claim.needs, claim.wants)) k
            order by k > claim.needs,
                     (case when k > claim.needs then k - claim.needs else k end)
                         ::double precision / claim.weight,
                     claim.id collate "C"
            limit greatest(0, my_cap - floors)
        ) unit;
        my_share := greatest(0, least(my_share, free));
    end if;
    if place is null or exists (
        select from geventpool_fleet_member p
            where p.name = my_name and p.place = geventpool_fleet_renew.place
    ) then
        select min(k) into place
            from generate_series(0, (select count(*) from geventpool_fleet_member p
                                         where p.name = my_name)) k
            where not exists (select from geventpool_fleet_member p
                                  where p.name = my_name and p.place = k);
    end if;
    insert into geventpool_fleet_member values (
        my_name, my_id, moment + my_lease, my_used, my_has, my_share, my_needs, my_wants,
        my_weight, my_floor, my_lease, my_generation, my_number, place
    );
end
$$;
