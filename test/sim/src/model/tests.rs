use super::*;

const SIZE: usize = 512;

fn read(disk: &mut DiskModel, content: Content) -> Result<(), Mismatch> {
    let id = disk.begin_read(1..2);
    let mut bytes = [0; SIZE];
    disk.encode(1, content, &mut bytes);
    disk.end_read(id, &bytes)
}

fn written(disk: &mut DiskModel, how: Change) -> Content {
    let content = disk.next_write();
    disk.begin_change(0..4, content);
    disk.end_change(0..4, how);
    content
}

#[test]
fn after_a_write_only_its_content_is_right() {
    let mut disk = DiskModel::new(1, SIZE, 4);
    let old = written(&mut disk, Change::Done);
    let new = written(&mut disk, Change::Done);
    assert!(read(&mut disk, old).is_err());
    assert!(read(&mut disk, Content::Zeroes).is_err());
    assert_eq!(read(&mut disk, new), Ok(()));
}

#[test]
fn a_failed_write_leaves_two_contents_until_one_was_seen() {
    for seen_first in [true, false] {
        let mut disk = DiskModel::new(1, SIZE, 4);
        let old = written(&mut disk, Change::Done);
        let new = written(&mut disk, Change::Unknown);
        let (seen, other) = if seen_first { (old, new) } else { (new, old) };
        assert_eq!(read(&mut disk, seen), Ok(()));
        assert!(read(&mut disk, other).is_err(), "a ghost");
    }
}

#[test]
fn a_write_of_a_lost_path_may_still_come_until_another_has_ended() {
    let mut disk = DiskModel::new(1, SIZE, 4);
    let old = written(&mut disk, Change::Done);
    let late = written(&mut disk, Change::Lingering);
    assert_eq!(read(&mut disk, old), Ok(()));
    assert_eq!(read(&mut disk, late), Ok(()));
    let new = written(&mut disk, Change::Done);
    assert!(read(&mut disk, late).is_err(), "a ghost");
    assert_eq!(read(&mut disk, new), Ok(()));
}

#[test]
fn a_read_beside_a_write_may_see_both() {
    for pick_new in [false, true] {
        let mut disk = DiskModel::new(1, SIZE, 4);
        let old = written(&mut disk, Change::Done);
        let id = disk.begin_read(1..2);
        let new = written(&mut disk, Change::Done);
        let mut bytes = [0; SIZE];
        disk.encode(1, if pick_new { new } else { old }, &mut bytes);
        assert_eq!(disk.end_read(id, &bytes), Ok(()));
        assert!(read(&mut disk, old).is_err());
    }
}

#[test]
fn torn_and_misplaced_blocks_are_seen() {
    let mut disk = DiskModel::new(1, SIZE, 4);
    let (old, new) = (
        written(&mut disk, Change::Done),
        written(&mut disk, Change::Done),
    );
    let mut bytes = [0; SIZE];
    disk.encode(1, new, &mut bytes);
    let mut other = [0; SIZE];
    disk.encode(1, old, &mut other);
    bytes[256..].copy_from_slice(&other[256..]);
    let id = disk.begin_read(1..2);
    assert!(disk.end_read(id, &bytes).is_err());
    disk.encode(2, new, &mut bytes);
    let id = disk.begin_read(1..2);
    assert!(disk.end_read(id, &bytes).is_err());
}

fn reads_any_of(disk: &DiskModel, contents: &[Content]) -> Vec<bool> {
    let can_be = |content: &Content| read(&mut disk.clone(), *content).is_ok();
    contents.iter().map(can_be).collect()
}

#[test]
fn a_power_failure_brings_back_what_was_not_flushed() {
    let mut disk = DiskModel::new(1, SIZE, 4);
    let flushed_over = written(&mut disk, Change::Done);
    let flushed = written(&mut disk, Change::Done);
    let flush = disk.begin_flush();
    let lost = written(&mut disk, Change::Done);
    disk.end_flush(flush);
    let last = written(&mut disk, Change::Done);
    let all = [flushed_over, flushed, lost, last];
    assert_eq!(reads_any_of(&disk, &all), [false, false, false, true]);
    disk.lose_power();
    assert_eq!(reads_any_of(&disk, &all), [false, true, true, true]);
}

#[test]
fn a_durable_write_outlives_a_power_failure() {
    let mut disk = DiskModel::new(1, SIZE, 4);
    let old = written(&mut disk, Change::Done);
    let durable = written(&mut disk, Change::Durable);
    disk.lose_power();
    assert_eq!(reads_any_of(&disk, &[old, durable]), [false, true]);
}

#[test]
fn a_flush_that_failed_saves_nothing() {
    let mut disk = DiskModel::new(1, SIZE, 4);
    let old = written(&mut disk, Change::Done);
    let new = written(&mut disk, Change::Done);
    disk.begin_flush();
    disk.lose_power();
    assert_eq!(reads_any_of(&disk, &[old, new]), [true, true]);
    assert_eq!(read(&mut disk, old), Ok(()));
    assert!(read(&mut disk, new).is_err(), "it was seen to be lost");
}

#[test]
fn a_read_beside_a_power_failure_may_see_what_came_back() {
    let mut disk = DiskModel::new(1, SIZE, 4);
    let old = written(&mut disk, Change::Done);
    let _new = written(&mut disk, Change::Done);
    let id = disk.begin_read(1..2);
    disk.lose_power();
    let mut bytes = [0; SIZE];
    disk.encode(1, old, &mut bytes);
    assert_eq!(disk.end_read(id, &bytes), Ok(()));
}

#[test]
fn a_write_answered_before_a_power_failure_may_be_lost_when_the_answer_comes() {
    for (how, may_be_lost) in [(Change::Done, true), (Change::Durable, false)] {
        let mut disk = DiskModel::new(1, SIZE, 4);
        let old = written(&mut disk, Change::Durable);
        let new = disk.next_write();
        disk.begin_change(0..4, new);
        disk.lose_power();
        disk.end_change(0..4, how);
        assert_eq!(reads_any_of(&disk, &[old, new]), [may_be_lost, true]);
    }
}

#[test]
fn what_a_read_saw_before_a_power_failure_may_be_lost_when_its_answer_comes() {
    let mut disk = DiskModel::new(1, SIZE, 4);
    let old = written(&mut disk, Change::Durable);
    let new = written(&mut disk, Change::Unknown);
    let id = disk.begin_read(1..2);
    disk.lose_power();
    let mut bytes = [0; SIZE];
    disk.encode(1, new, &mut bytes);
    assert_eq!(disk.end_read(id, &bytes), Ok(()));
    assert_eq!(reads_any_of(&disk, &[old, new]), [true, true]);
}
