/* Values as metadata and raw memory, for ports: what `codec.py` says, for what is plain enough.

   The metadata of arrays is not made here: a port asks `codec.describe_array` once for each dtype and shape, and
   remembers the answer by the identity of the dtype. Likewise new arrays are made by `codec.new_array`. */

#include "port.h"

/* Bytes from which a buffer inside a pickled value travels raw, as `codec.OUT_OF_BAND` says. */
#define OUT_OF_BAND 2048

/* An exception that only means: not by the short cut. */
static enum verdict decline(void)
{
    PyErr_Clear();
    return NO;
}

/* ----------------------------------------------------------------------------------------------------- out */

void release(Encoded *value)
{
    while (value->held) {
        PyBuffer_Release(&value->views[--value->held]);
    }
    Py_CLEAR(value->kept);
}

static size_t slot_of(const PyObject *dtype, const Py_buffer *view)
{
    size_t mixed = (size_t)dtype >> 4;
    for (int i = 0; i < view->ndim; i++) {
        mixed = mixed * 31 + (size_t)view->shape[i];
    }
    return (mixed ^ mixed >> 7) % DESCRIBED;
}

static bool is_described(const Described *entry, const PyObject *dtype, const Py_buffer *view, char order)
{
    bool same = entry->dtype == dtype && entry->dimensions == view->ndim && entry->order == order;
    for (int i = 0; same && i < view->ndim; i++) { /* without dimensions, there may be no shape to compare */
        same = entry->shape[i] == view->shape[i];
    }
    return same;
}

PyObject *metadata_of(Port *port, PyObject *array, const Py_buffer *view)
{
    char order = PyBuffer_IsContiguous(view, 'C') ? 'C' : PyBuffer_IsContiguous(view, 'F') ? 'F' : 0;
    if (!order || view->ndim > MOST_DIMENSIONS) {
        return NULL;
    }
    PyObject *dtype = PyObject_GetAttrString(array, "dtype");
    if (dtype == NULL) {
        return NULL;
    }
    Described *entry = &port->hub->described[slot_of(dtype, view)];
    if (is_described(entry, dtype, view, order)) {
        Py_DECREF(dtype);
        return entry->metadata;
    }
    PyObject *metadata = PyObject_CallFunctionObjArgs(port->hub->describe, array, NULL);
    if (metadata == NULL || !PyBytes_CheckExact(metadata) || PyBytes_Size(metadata) > MOST_METADATA) {
        Py_XDECREF(metadata);
        Py_DECREF(dtype);
        return NULL;
    }
    replace(&entry->dtype, dtype);
    replace(&entry->metadata, metadata);
    entry->dimensions = view->ndim;
    entry->order = order;
    for (int i = 0; i < view->ndim; i++) {
        entry->shape[i] = view->shape[i];
    }
    return metadata;
}

static void add_piece(Encoded *value, const void *at, Py_ssize_t size)
{
    if (size) {
        value->pieces[value->count].at = (unsigned char *)at; /* it is only read */
        value->pieces[value->count].size = (uint64_t)size;
        value->count++;
        value->length += (uint64_t)size;
    }
}

static enum verdict encode_array(Port *port, PyObject *array, Encoded *value)
{
    Py_buffer *view = &value->views[0];
    if (PyObject_GetBuffer(array, view, PyBUF_STRIDED_RO)) {
        return decline(); /* such as a datetime64 */
    }
    value->held = 1;
    PyObject *metadata = metadata_of(port, array, view);
    if (metadata == NULL) {
        return PyErr_Occurred() ? FAILED : NO;
    }
    value->kept = Py_NewRef(metadata);
    value->metadata_size = PyBytes_Size(metadata);
    value->metadata = PyBytes_AsString(metadata);
    add_piece(value, view->buf, view->len);
    return YES;
}

/* Called by pickle for each buffer, with the list of those that travel raw: true keeps it inside the pickle. */
static PyObject *out_of_band(PyObject *parts, PyObject *buffer)
{
    Py_buffer view;
    PyObject *raw = PyObject_CallMethod(buffer, "raw", NULL);
    if (raw == NULL || PyObject_GetBuffer(raw, &view, PyBUF_SIMPLE)) {
        Py_XDECREF(raw);
        return NULL;
    }
    bool inside = view.len < OUT_OF_BAND || PyList_Size(parts) >= MOST_SEGMENTS;
    PyBuffer_Release(&view);
    int failed = inside ? 0 : PyList_Append(parts, raw);
    Py_DECREF(raw);
    return failed ? NULL : PyBool_FromLong(inside);
}

static PyMethodDef out_of_band_def = {"out_of_band", out_of_band, METH_O, NULL};

/* Put None in place of a dict's value, whatever exception is set. */
static void let_go_of(PyObject *dict, PyObject *key)
{
    PyObject *type, *value, *trace;
    PyErr_Fetch(&type, &value, &trace);
    PyDict_SetItem(dict, key, Py_None); /* the key is there, so this needs no memory */
    PyErr_Restore(type, value, trace);
}

/* The pickle of an object; its large buffers are appended to `parts`. */
static PyObject *pickled(Port *port, PyObject *object, PyObject *parts)
{
    Hub *hub = port->hub;
    PyObject *stream = NULL, *callback = PyCFunction_New(&out_of_band_def, parts), *args = PyTuple_Pack(1, object);
    if (callback != NULL && args != NULL && !PyDict_SetItem(hub->options, hub->buffer_callback, callback)) {
        stream = PyObject_Call(hub->dumps, args, hub->options); /* which are copied before any other code runs */
        let_go_of(hub->options, hub->buffer_callback);
    }
    Py_XDECREF(callback);
    Py_XDECREF(args);
    return stream;
}

static enum verdict encode_object(Port *port, PyObject *object, Encoded *value)
{
    PyObject *parts = PyList_New(1); /* its first place is the pickle's own */
    bool ready = parts != NULL && PyList_SetItem(parts, 0, Py_NewRef(Py_None)) == 0;
    PyObject *stream = ready ? pickled(port, object, parts) : NULL;
    value->kept = parts;
    if (stream == NULL || PyList_SetItem(parts, 0, stream)) {
        return FAILED;
    }
    for (Py_ssize_t i = 0; i < PyList_Size(parts); i++) {
        Py_buffer *view = &value->views[i];
        if (PyObject_GetBuffer(PyList_GetItem(parts, i), view, PyBUF_SIMPLE)) {
            return decline();
        }
        value->held++;
        value->sizes[i + 1] = (uint64_t)view->len;
        add_piece(value, view->buf, view->len);
    }
    ((unsigned char *)value->sizes)[7] = 'p';
    value->metadata = (unsigned char *)value->sizes + 7;
    value->metadata_size = 1 + 8 * value->held;
    return YES;
}

/* `at` lies in the metadata if `inside`, else it is the payload. */
static enum verdict encode_plain(Encoded *value, char code, const void *at, Py_ssize_t size, bool inside)
{
    value->small[0] = (unsigned char)code;
    value->metadata = value->small;
    value->metadata_size = 1;
    if (inside) {
        memcpy(value->small + 1, at, (size_t)size);
        value->metadata_size += size;
    } else {
        add_piece(value, at, size);
    }
    return YES;
}

enum verdict encode(Port *port, PyObject *object, Encoded *value)
{
    value->count = value->held = 0;
    value->length = 0;
    value->kept = NULL;
    PyTypeObject *type = Py_TYPE(object);
    if ((PyObject *)type == port->hub->array_type) {
        return encode_array(port, object, value);
    }
    if (type == &PyLong_Type) {
        int overflow;
        long long number = PyLong_AsLongLongAndOverflow(object, &overflow);
        return overflow ? NO : encode_plain(value, 'i', &number, sizeof number, true);
    }
    if (type == &PyFloat_Type) {
        double number = PyFloat_AsDouble(object);
        return encode_plain(value, 'f', &number, sizeof number, true);
    }
    if (object == Py_None || type == &PyBool_Type) {
        return encode_plain(value, object == Py_None ? 'N' : object == Py_True ? 'T' : 'F', NULL, 0, false);
    }
    if (type == &PyUnicode_Type) {
        Py_ssize_t size;
        const char *text = PyUnicode_AsUTF8AndSize(object, &size);
        return text == NULL ? decline() : encode_plain(value, 's', text, size, false);
    }
    if (type == &PyBytes_Type) {
        return encode_plain(value, 'b', PyBytes_AsString(object), PyBytes_Size(object), false);
    }
    return encode_object(port, object, value);
}

/* ------------------------------------------------------------------------------------------------------ in */

PyObject *value_in(const unsigned char *metadata, uint32_t size, uint64_t length)
{
    long long integer;
    double fraction;
    if (length) {
        return NULL;
    }
    if (size == 9 && metadata[0] == 'i') {
        memcpy(&integer, metadata + 1, 8);
        return PyLong_FromLongLong(integer);
    }
    if (size == 9 && metadata[0] == 'f') {
        memcpy(&fraction, metadata + 1, 8);
        return PyFloat_FromDouble(fraction);
    }
    if (size == 1 && (metadata[0] == 'N' || metadata[0] == 'T' || metadata[0] == 'F')) {
        return Py_NewRef(metadata[0] == 'N' ? Py_None : metadata[0] == 'T' ? Py_True : Py_False);
    }
    return NULL;
}

void close_landing(Landing *landing)
{
    if (landing->held) {
        PyBuffer_Release(&landing->view);
        landing->held = false;
    }
    Py_CLEAR(landing->object);
}

static void land_at(Landing *landing, void *at, uint64_t size)
{
    if (size) {
        landing->pieces[landing->count].at = at;
        landing->pieces[landing->count].size = size;
        landing->count++;
    }
}

static enum verdict open_array(Port *port, const unsigned char *metadata, uint32_t size, uint64_t length,
                               Landing *landing)
{
    PyObject *described = PyBytes_FromStringAndSize((const char *)metadata, size);
    PyObject *array = described == NULL ? NULL : PyObject_CallFunctionObjArgs(port->hub->new_array, described, NULL);
    Py_XDECREF(described);
    if (array == NULL || array == Py_None) {
        Py_XDECREF(array);
        return array == NULL ? FAILED : NO;
    }
    landing->object = array;
    if (PyObject_GetBuffer(array, &landing->view, PyBUF_STRIDED)) {
        return decline();
    }
    landing->held = true;
    land_at(landing, landing->view.buf, length);
    return (uint64_t)landing->view.len == length ? YES : NO;
}

static enum verdict open_bytes(uint64_t length, Landing *landing)
{
    landing->object = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)length);
    if (landing->object == NULL) {
        return decline(); /* if there is no memory, the long way says so */
    }
    land_at(landing, PyBytes_AsString(landing->object), length);
    return YES;
}

/* A list of the pickle and its buffers; these can be written, as arrays that are made of them must be. */
static enum verdict open_pickle(const unsigned char *metadata, uint32_t size, uint64_t length, Landing *landing)
{
    uint64_t sizes[MOST_SEGMENTS], sum = 0, count = (size - 1) / 8;
    if (size % 8 != 1 || count < 1 || count > MOST_SEGMENTS) {
        return NO;
    }
    memcpy(sizes, metadata + 1, count * 8);
    for (uint64_t i = 0; i < count; i++) {
        if (sizes[i] > length - sum) {
            return NO;
        }
        sum += sizes[i];
    }
    landing->object = sum == length ? PyList_New((Py_ssize_t)count) : NULL;
    for (uint64_t i = 0; landing->object != NULL && i < count; i++) {
        PyObject *part = i ? PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)sizes[i])
                           : PyBytes_FromStringAndSize(NULL, (Py_ssize_t)sizes[i]);
        if (part == NULL || PyList_SetItem(landing->object, (Py_ssize_t)i, part)) {
            return decline();
        }
        land_at(landing, i ? PyByteArray_AsString(part) : PyBytes_AsString(part), sizes[i]);
    }
    return landing->object != NULL ? YES : decline();
}

enum verdict open_landing(Port *port, const unsigned char *metadata, uint32_t size, uint64_t length, Landing *landing)
{
    landing->object = NULL;
    landing->held = false;
    landing->count = 0;
    if (metadata[0] == 'a') {
        return open_array(port, metadata, size, length, landing);
    }
    if (metadata[0] == 'p') {
        return open_pickle(metadata, size, length, landing);
    }
    if ((metadata[0] == 's' || metadata[0] == 'b') && size == 1) {
        return open_bytes(length, landing);
    }
    return NO;
}

PyObject *landed_value(const Landing *landing, unsigned char code)
{
    if (code != 's') {
        return Py_NewRef(landing->object);
    }
    const char *text = PyBytes_AsString(landing->object);
    PyObject *string = PyUnicode_DecodeUTF8(text, PyBytes_Size(landing->object), "surrogatepass");
    if (string == NULL) {
        PyErr_Clear(); /* the long way says what that means */
    }
    return string;
}

PyObject *unpickled(Port *port, PyObject *parts)
{
    PyObject *stream = PyList_GetItem(parts, 0), *value = NULL;
    if (PyList_Size(parts) == 1) {
        return PyObject_CallFunctionObjArgs(port->hub->loads, stream, NULL);
    }
    PyObject *rest = PyList_GetSlice(parts, 1, PyList_Size(parts)), *args = PyTuple_Pack(1, stream);
    PyObject *names = PyDict_New();
    if (rest != NULL && args != NULL && names != NULL && !PyDict_SetItemString(names, "buffers", rest)) {
        value = PyObject_Call(port->hub->loads, args, names);
    }
    Py_XDECREF(rest);
    Py_XDECREF(args);
    Py_XDECREF(names);
    return value;
}
