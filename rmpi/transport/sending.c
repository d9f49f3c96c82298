/* Sending by a port: a small message whole, a large one as a flight. */

#include "port.h"

static void message_header(Header *header, const Port *port, const Lane *lane, enum kind kind, int64_t tag,
                           uint64_t fingerprint, const Encoded *value)
{
    fill_header(header, lane, kind);
    header->metadata = (uint32_t)value->metadata_size;
    header->context = port->context;
    header->tag = tag;
    header->fingerprint = fingerprint;
    header->length = value->length;
}

/* Header, metadata and `count` pieces: there is room. */
static void write_frame(Lane *lane, const Header *header, const Encoded *value, int count)
{
    struct iovec pieces[2 + MOST_SEGMENTS] = {{(void *)header, HEADER_SIZE},
                                              {(void *)value->metadata, header->metadata}};
    for (int i = 0; i < count; i++) {
        pieces[2 + i].iov_base = value->pieces[i].at;
        pieces[2 + i].iov_len = value->pieces[i].size;
    }
    lane_write(lane, pieces, 2 + count);
}

enum verdict send_small(Port *port, Lane *lane, int64_t tag, uint64_t fingerprint, const Encoded *value)
{
    uint64_t size = HEADER_SIZE + (uint64_t)value->metadata_size + value->length;
    long long cost = (long long)value->length + FRAME_COST;
    if (value->length > EAGER_LIMIT || !undisturbed(port) || !is_clear(lane) || lane->credit < cost ||
        lane_room(lane, size) < size) {
        return NO;
    }
    Header header;
    message_header(&header, port, lane, EAGER, tag, fingerprint, value);
    write_frame(lane, &header, value, value->count);
    lane->credit -= cost;
    return YES;
}

enum verdict depart(Port *port, Lane *lane, int64_t tag, uint64_t fingerprint, Encoded *value, struct flight *out)
{
    uint64_t size = HEADER_SIZE + (uint64_t)value->metadata_size;
    if (!is_clear(lane) || lane_room(lane, size) < size) {
        return NO;
    }
    memset(out, 0, sizeof *out);
    out->lane = lane;
    out->message = 1ull << 62 | ++lane->flights; /* the endpoint counts its own from 1 */
    out->context = port->context;
    out->stage = OFFERED;
    out->length = value->length;
    out->pieces = value->pieces;
    out->count = value->count;
    Header header;
    message_header(&header, port, lane, OFFER, tag, fingerprint, value);
    header.message = out->message;
    write_frame(lane, &header, value, 0);
    return YES;
}

PyObject *origin(PyObject *object, const Encoded *value)
{
    return value->kept != NULL && PyList_Check(value->kept) ? value->kept : object;
}

PyObject *send_large(Port *port, Lane *lane, int64_t tag, uint64_t fingerprint, PyObject *object, Encoded *value)
{
    struct flight out;
    if (!is_ours(port) || port->hub->most_spin == 0 || !take_lock(port)) {
        Py_RETURN_FALSE;
    }
    PyObject *result = Py_False;
    if (depart(port, lane, tag, fingerprint, value, &out) == YES) {
        result = fly_on(port, &out, NULL) ? Py_True : adopt_out(port, &out, tag, fingerprint, origin(object, value));
    }
    leave_lock(port);
    return result == Py_True || result == Py_False ? Py_NewRef(result) : result;
}
